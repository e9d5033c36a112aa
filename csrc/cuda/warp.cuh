// A warp as the lanes of step/lanes.h.
#pragma once

#include "vector.cuh"

namespace edlm::cuda {

struct Warp {
  int index; // of the calling lane

  static constexpr __device__ int count() { return kLanes; }
  __device__ __forceinline__ int lane() const { return index; }
  __device__ __forceinline__ void sync() const { sync_warp(); }
  __device__ __forceinline__ int sum(int value) const {
    for (int mask = kLanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
  }
  __device__ __forceinline__ int min(int value) const {
    for (int mask = kLanes / 2; mask > 0; mask /= 2) {
      const int other = shuffle_xor(value, mask);
      value = other < value ? other : value;
    }
    return value;
  }
  __device__ __forceinline__ int sum_before(int value) const {
    int up_to = value;
    for (int delta = 1; delta < kLanes; delta *= 2) {
      const int below = shuffle_up(up_to, delta);
      up_to += index >= delta ? below : 0;
    }
    return up_to - value;
  }
};

} // namespace edlm::cuda
