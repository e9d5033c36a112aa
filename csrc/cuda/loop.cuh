// The loop's own kernels, a warp each, of which one thread works. Nothing else sets the conditions of the graph's
// nodes, and a turn's are all set before its step starts: a step cannot change which step its turn runs.
#pragma once

#include "loop.h"
#include "ptx.cuh"

namespace edlm::cuda {

constexpr int kLoopThreads = 32;

__device__ __forceinline__ void set_conditions(const LoopParams& p) {
  const LoopTurn turn = loop_turn(*p.control, p.max_steps);
  cudaGraphSetConditional(p.again, turn.again);
  cudaGraphSetConditional(p.commit, turn.commit);
  cudaGraphSetConditional(p.plain, turn.plain);
}

// Before the first turn.
__global__ void __launch_bounds__(kLoopThreads) loop_begin_kernel(const LoopParams p) {
  wait_for_previous_kernel();
  if (threadIdx.x != 0) return;
  p.control->steps = 0;
  set_conditions(p);
}

// At the end of each turn.
__global__ void __launch_bounds__(kLoopThreads) loop_next_kernel(const LoopParams p) {
  wait_for_previous_kernel();
  if (threadIdx.x != 0) return;
  ++p.control->steps;
  set_conditions(p);
}

} // namespace edlm::cuda
