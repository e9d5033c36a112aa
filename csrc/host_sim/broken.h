// Positive controls: a small kernel that is right, and ways to break it. A simulator that lets one of them pass proves
// nothing about the others.
#pragma once

#include "../cuda/launch.cuh"
#include "../cuda/vector.cuh"
#include "case.h"

namespace edlm::host_sim {

enum class Fault : std::int64_t {
  none,
  no_wait,           // reads what an asynchronous copy may not have brought yet
  no_barrier,        // reads what another warp may not have written yet
  early_overwrite,   // copies into a buffer that other warps still read
  over_read_global,  // one element past the input
  over_read_shared,  // past the block's shared memory
  unwritten_output,  // leaves the last element alone
  divergent_barrier, // half of the threads skip a barrier
  divergent_warp,    // one lane skips a shuffle
  unordered_launch,  // does not wait for the previous kernel
};

struct BrokenParams {
  Fault fault;
  std::int64_t count;  // floats, a multiple of 256
  const float* input;  // [count]
  float* out;          // [count]: each 256 of the input reversed, plus 1
};

// Two tiles of 256 floats in shared memory: the copies of the next one run while a tile is reversed.
inline void broken_kernel(const BrokenParams p) {
  using namespace cuda;
  const Fault fault = p.fault;
  if (fault != Fault::unordered_launch) wait_for_previous_kernel();
  auto* tiles = reinterpret_cast<float*>(shared_memory());
  const int i = static_cast<int>(threadIdx.x);
  const auto copy = [&](std::int64_t at) {
    if (i < 64 && at < p.count) copy_async(tiles + at / 256 % 2 * 256 + i * 4, p.input + at + i * 4, true);
    copy_commit();
  };
  copy(0);
  for (std::int64_t at = 0; at < p.count; at += 256) {
    if (fault == Fault::early_overwrite) copy(at + 256);
    if (fault != Fault::no_wait) fault == Fault::early_overwrite ? copy_wait<1>() : copy_wait<0>();
    if (fault != Fault::no_barrier && (fault != Fault::divergent_barrier || i < 128)) sync_block();
    if (fault != Fault::early_overwrite) copy(at + 256);
    float value = tiles[at / 256 % 2 * 256 + 255 - i];
    if (fault == Fault::over_read_global && at + 256 >= p.count) value += p.input[at + i + 1];
    if (fault == Fault::over_read_shared) value += tiles[512 + i];
    if (fault != Fault::divergent_warp || i != 5) value = shuffle_xor(shuffle_xor(value, 1), 1);
    if (fault != Fault::unwritten_output || at + i + 1 < p.count) p.out[at + i] = value + 1;
  }
}

inline void broken(const Case& c) {
  const BrokenParams p{static_cast<Fault>(c.integer("fault")), c.integer("count"), c.buffer<float>("input"),
                       c.buffer<float>("out")};
  cuda::launch("broken", broken_kernel, cuda::dim3{1}, 256, 2 * 256 * sizeof(float), {}, p);
}

} // namespace edlm::host_sim
