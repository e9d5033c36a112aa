// Who does the work of a block between two steps: the one lane of a CPU's thread, or a warp's 32 on a GPU
// (cuda/warp.cuh). The functions beside this file are written for any number of them: lane i takes the positions
// i, i + count(), ...; what depends on all positions goes through these calls, which all lanes make together.
#pragma once

namespace edlm {

struct OneLane {
  static constexpr int count() { return 1; }
  static constexpr int lane() { return 0; }
  static int sum(int value) { return value; }
  static int min(int value) { return value; }
  static int sum_before(int) { return 0; } // of the lanes before this one
  static void sync() {}                    // what the lanes wrote to memory before, all of them see afterwards
};

} // namespace edlm
