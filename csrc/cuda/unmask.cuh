// A warp per slot; step/unmask.h holds the work.
#pragma once

#include "../step/unmask.h"
#include "launch.cuh"
#include "warp.cuh"

namespace edlm::cuda {

// Shared: CommitScratch.
__global__ void __launch_bounds__(kLanes) unmask_kernel(const UnmaskParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int slot = static_cast<int>(blockIdx.x);
  const std::int64_t row = p.first_row[slot];
  if (row < 0) return;
  edlm::unmask(block_of(p.state, slot), p.ids + row * IdColumn::count, p.stats + row * StatColumn::count,
               commit_scratch(shared_memory(), p.state.max_block), Warp{static_cast<int>(threadIdx.x)});
}

inline void unmask(const UnmaskParams& p, Stream stream) {
  launch("unmask", unmask_kernel, dim3{static_cast<unsigned>(p.state.slots)}, kLanes,
         static_cast<std::size_t>(p.state.max_block * kCommitScratchBytes), stream, p);
}

} // namespace edlm::cuda
