// One block for all slots, a warp for each of them in turn; step/advance.h holds the work.
#pragma once

#include "../step/advance.h"
#include "launch.cuh"
#include "warp.cuh"

namespace edlm::cuda {

constexpr int kAdvanceThreads = 512;
constexpr int kAdvanceWarps = kAdvanceThreads / kLanes;

// The state as the step left it, for the host, which sees the count only after the bytes.
__device__ __forceinline__ void write_snapshot(const AdvanceParams& p) {
  const std::int32_t count = p.control->snapshots;
  const std::int64_t words = p.state.slots * p.state.words;
  std::int32_t* to = p.link.words + (1 + count % p.link.ring_size) * words;
  for (std::int64_t at = 4 * threadIdx.x; at < words; at += 4 * kAdvanceThreads)
    store_elements(to + at, load_elements<4>(p.state.records + at));
  fence_system();
  sync_block(); // no thread changes the state, or the count, before all have copied
  if (threadIdx.x == 0) {
    p.control->snapshots = count + 1;
    store_system(p.link.words + kHostSnapshots, count + 1);
  }
}

__device__ __forceinline__ Places places_of(const AdvanceParams& p, int slot, bool noisy) {
  const std::int64_t base = slot * p.state.max_block;
  return {noisy ? base : 0,   (noisy ? p.batch * p.state.max_block : 0) + base, base, slot,
          p.batch + slot, static_cast<int>(p.state.max_block)};
}

// Shared: per warp whether any of its slots goes on, and whether any has clean rows.
__global__ void __launch_bounds__(kAdvanceThreads, 1) advance_kernel(const AdvanceParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  auto* flags = reinterpret_cast<int*>(shared_memory());
  if (p.flags & kSnapshot) write_snapshot(p);
  const int warp = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  const Warp lanes{lane};
  const bool shift = p.flags & kShift, noisy = has_noisy_rows(p.flags, p.state.max_block);
  int any = 0, commit = 0;
  for (int slot = warp; slot < static_cast<int>(p.state.slots); slot += kAdvanceWarps) {
    const Block b = block_of(p.state, slot);
    if (b.slot.active && p.flags & kTake) take_step(b, static_cast<int>(p.state.max_block), shift, lanes);
    const bool active = b.slot.active && slot < p.batch && !load_system(p.link.words + kHostStop + slot);
    sync_warp(); // every lane has read `active`
    if (lane == 0) {
      b.slot.active = active ? 1 : 0;
      if (slot >= p.batch) p.inputs.first_row[slot] = -1;
    }
    if (slot < p.batch) lay_out(p.inputs, b, slot, places_of(p, slot, noisy), active, noisy, shift, lanes);
    any |= active ? 1 : 0;
    commit |= active && b.slot.pending > 0 ? 1 : 0;
  }
  if (lane == 0) {
    flags[2 * warp] = any;
    flags[2 * warp + 1] = commit;
  }
  sync_block();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kAdvanceWarps; ++w) {
    any |= flags[2 * w];
    commit |= flags[2 * w + 1];
  }
  p.control->go_on = any && !load_system(p.link.words + kHostPause) ? 1 : 0;
  p.control->commit = commit;
}

// The flags must be those of a step between fixed places: kLayOut and not kCompact; and somebody must follow.
inline void advance(const AdvanceParams& p, Stream stream) {
  launch("advance", advance_kernel, dim3{1}, kAdvanceThreads, 2 * kAdvanceWarps * sizeof(int), stream, p);
}

} // namespace edlm::cuda
