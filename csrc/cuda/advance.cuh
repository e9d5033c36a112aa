// One block for all slots, a warp for each of them in turn, its lanes at positions lane, lane + 32, ... of the block. As
// cpu/advance.cpp.
#pragma once

#include "launch.cuh"
#include "vector.cuh"

namespace edlm::cuda {

constexpr int kAdvanceThreads = 512;
constexpr int kAdvanceWarps = kAdvanceThreads / kLanes;

__device__ __forceinline__ int sum_ints(int value) {
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

__device__ __forceinline__ int min_ints(int value) {
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const int other = shuffle_xor(value, mask);
    value = other < value ? other : value;
  }
  return value;
}

// A warp's slot; what all lanes hold alike.
struct Slot {
  int index, lane;
  std::int64_t base; // of its positions
};

__device__ __forceinline__ bool stops(const AdvanceParams& p, int slot, std::int32_t token) {
  const std::int32_t* ids = p.stop_ids + slot * p.stop_ids_per_slot;
  bool found = false;
  for (int i = 0; i < static_cast<int>(p.stop_ids_per_slot); ++i) found |= ids[i] == token;
  return found;
}

// Whether a token that ends the text has nothing but tokens before it.
__device__ __forceinline__ bool text_ended(const AdvanceParams& p, const Slot& s, int length) {
  int first_mask = length, first_stop = length;
  for (int j = s.lane; j < length; j += kLanes) {
    if (p.masked[s.base + j])
      first_mask = j < first_mask ? j : first_mask;
    else if (stops(p, s.index, p.tokens[s.base + j]))
      first_stop = j < first_stop ? j : first_stop;
  }
  return min_ints(first_stop) < min_ints(first_mask);
}

__device__ __forceinline__ void begin_block(const AdvanceParams& p, const Slot& s, int length) {
  const int mask = p.mask_id > 0 ? p.mask_id : 0;
  for (int j = s.lane; j < static_cast<int>(p.max_block); j += kLanes) {
    p.tokens[s.base + j] = mask;
    p.masked[s.base + j] = j < length ? 1 : 0;
  }
  if (s.lane == 0) {
    p.num_masked[s.index] = p.block_length[s.index] = length;
    p.step[s.index] = p.status[s.index] = 0;
  }
}

// What a step that the slot took part in has left.
__device__ __forceinline__ void take(const AdvanceParams& p, const Slot& s) {
  const int length = p.block_length[s.index], status = p.status[s.index], pending = p.pending[s.index];
  const int start = p.start[s.index] + length, end = p.end[s.index], full = p.full_length[s.index];
  const bool ended = status < 0 || text_ended(p, s, length), finished = !ended && status > 0;
  const std::int32_t last = p.shift ? p.clean[s.base + pending - 1] : 0;
  sync_warp(); // every lane has read what one of them changes
  if (finished) {
    for (int j = s.lane; j < length; j += kLanes) p.clean[s.base + j] = p.tokens[s.base + j];
  } else if (p.shift && s.lane == 0) {
    p.clean[s.base] = last;
  }
  sync_warp();
  if (finished && start < end) begin_block(p, s, full < end - start ? full : end - start);
  if (s.lane == 0) {
    p.pending[s.index] = finished ? length : p.shift ? 1 : 0;
    if (finished) p.start[s.index] = start;
    if (ended || (finished && start >= end)) p.active[s.index] = 0;
  }
  sync_warp();
}

__device__ __forceinline__ void lay_out_rows(const AdvanceParams& p, const Slot& s, std::int64_t first, int start,
                                             int count, const std::int32_t* tokens) {
  for (int j = s.lane; j < static_cast<int>(p.max_block); j += kLanes) {
    const bool used = j < count;
    p.token_ids[first + j] = used ? tokens[j] : 0;
    p.row_slots[first + j] = used ? s.index : -1;
    p.positions[first + j] = used ? start + j : 0;
  }
}

__device__ __forceinline__ QueryBlock query_block(int slot, int start, int length, std::int64_t row) {
  const bool used = length > 0;
  return {used ? slot : -1, used ? start : 0, length, used ? start + length : 0, 0, static_cast<std::int32_t>(row)};
}

// The rows whose statistics the masked positions need, without gaps, and padding behind them.
__device__ __forceinline__ void lay_out_heads(const AdvanceParams& p, const Slot& s, std::int64_t noisy_row,
                                              std::int64_t before_block, int start, int length) {
  int heads = 0;
  for (int begin = 0; begin < length; begin += kLanes) {
    const int j = begin + s.lane;
    const int wanted = j < length && p.masked[s.base + j] ? 1 : 0;
    int before = wanted;
    for (int delta = 1; delta < kLanes; delta *= 2) {
      const int below = shuffle_up(before, delta);
      before += s.lane >= delta ? below : 0;
    }
    if (wanted) {
      const std::int64_t head = s.base + heads + before - 1, row = noisy_row + j;
      p.head_rows[head] = static_cast<std::int32_t>(!p.shift ? row : j > 0 ? row - 1 : before_block);
      p.head_slots[head] = s.index;
      p.head_positions[head] = start + j;
    }
    heads += sum_ints(wanted);
  }
  for (int i = heads + s.lane; i < static_cast<int>(p.max_block); i += kLanes) {
    p.head_rows[s.base + i] = p.head_positions[s.base + i] = 0;
    p.head_slots[s.base + i] = -1;
  }
}

__device__ __forceinline__ void lay_out(const AdvanceParams& p, const Slot& s, bool active) {
  const bool noisy = p.mask_id >= 0;
  const std::int64_t noisy_row = noisy ? s.base : 0, clean_row = (noisy ? p.batch * p.max_block : 0) + s.base;
  const int length = active ? p.block_length[s.index] : 0, pending = active ? p.pending[s.index] : 0;
  const int start = p.start[s.index];
  if (noisy) lay_out_rows(p, s, noisy_row, start, length, p.tokens + s.base);
  lay_out_rows(p, s, clean_row, start - pending, pending, p.clean + s.base);
  lay_out_heads(p, s, noisy_row, clean_row + pending - 1, start, length);
  if (s.lane == 0) {
    p.query_blocks[s.index] = query_block(s.index, start, noisy ? length : 0, noisy_row);
    p.query_blocks[p.batch + s.index] = query_block(s.index, start - pending, pending, clean_row);
  }
}

// The state as the step left it, for the host, which sees the count only after the bytes.
__device__ __forceinline__ void write_snapshot(const AdvanceParams& p) {
  const std::int32_t count = p.control->snapshots;
  std::uint8_t* to = p.ring + count % p.ring_size * p.snapshot_bytes;
  for (std::int64_t at = 16 * threadIdx.x; at < p.snapshot_bytes; at += 16 * kAdvanceThreads)
    store_elements(to + at, load_elements<16>(p.snapshot + at));
  fence_system();
  sync_block(); // no thread changes the state, or the count, before all have copied
  if (threadIdx.x == 0) {
    p.control->snapshots = count + 1;
    store_system(p.host + kHostSnapshots, count + 1);
  }
}

// Shared: per warp whether any of its slots goes on, and whether any has clean rows.
__global__ void __launch_bounds__(kAdvanceThreads) advance_kernel(const AdvanceParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  auto* flags = reinterpret_cast<int*>(shared_memory());
  if (!p.lay_out_only) write_snapshot(p);
  const int warp = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  int any = 0, commit = 0;
  for (int slot = warp; slot < static_cast<int>(p.slots); slot += kAdvanceWarps) {
    const Slot s{slot, lane, slot * p.max_block};
    if (p.active[slot] && !p.lay_out_only) take(p, s);
    const bool active = p.active[slot] && slot < p.batch && !load_system(p.host + kHostStop + slot);
    sync_warp(); // every lane has read `active`
    if (lane == 0) {
      p.active[slot] = active ? 1 : 0;
      p.first_row[slot] = active ? static_cast<std::int32_t>(s.base) : -1;
    }
    if (slot < p.batch) lay_out(p, s, active);
    any |= active ? 1 : 0;
    commit |= active && p.pending[slot] > 0 ? 1 : 0;
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
  p.control->go_on = any && !load_system(p.host + kHostPause) ? 1 : 0;
  p.control->commit = commit;
}

inline void advance(const AdvanceParams& p, Stream stream) {
  launch("advance", advance_kernel, dim3{1}, kAdvanceThreads, 2 * kAdvanceWarps * sizeof(int), stream, p);
}

} // namespace edlm::cuda
