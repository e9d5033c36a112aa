// What the device-side denoising loop decides between two steps, and what its kernels take. No CUDA header: tests run
// it anywhere.
#pragma once

#include "../params.h"

namespace edlm {

// Conditions of the loop's next turn: of `commit` and `plain` exactly one is 1 if `again` is, else none.
struct LoopTurn {
  std::uint32_t again, commit, plain;
};

constexpr LoopTurn loop_turn(const LoopControl& control, std::int32_t max_steps) {
  const bool again = control.go_on != 0 && control.steps < max_steps;
  const bool commit = control.commit != 0;
  return {again ? 1u : 0u, again && commit ? 1u : 0u, again && !commit ? 1u : 0u};
}

using LoopHandle = unsigned long long; // cudaGraphConditionalHandle

struct LoopParams {
  LoopControl* control;
  std::int32_t max_steps;
  LoopHandle again, commit, plain; // of the nodes that LoopTurn is for
};

} // namespace edlm
