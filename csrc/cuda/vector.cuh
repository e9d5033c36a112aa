// Vectors of elements, and reductions over lanes and blocks.
#pragma once

#include "ptx.cuh"

namespace edlm::cuda {

// N elements that one access moves.
template <class T, int N>
struct alignas(sizeof(T) * N) Elements {
  T at[N];
};

// Elements of 16 bytes, if rows of n elements from 16-byte aligned arrays allow it.
template <class T>
constexpr int kPerAccess = 16 / sizeof(T);

template <int N, class T>
__device__ __forceinline__ Elements<T, N> load_elements(const T* from) {
  return *reinterpret_cast<const Elements<T, N>*>(from);
}
template <int N, class T>
__device__ __forceinline__ void store_elements(T* to, const Elements<T, N>& value) {
  *reinterpret_cast<Elements<T, N>*>(to) = value;
}

// The sum over groups of `width` lanes (a power of two), the same in every lane of a group.
__device__ __forceinline__ float sum_lanes(float value, int width = kLanes) {
  for (int mask = width / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// The sum over a block, the same in every thread. scratch: one float per warp in shared memory, not used for anything
// else between two barriers.
__device__ __forceinline__ float sum_block(float value, float* scratch) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, warps = blockDim.x / kLanes;
  value = sum_lanes(value);
  if (lane == 0) scratch[warp] = value;
  sync_block();
  return sum_lanes(lane < warps ? scratch[lane] : 0.0f);
}

// The largest of a block, which has no NaN, the same in every thread; scratch as above.
__device__ __forceinline__ float max_block(float value, float* scratch) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, warps = blockDim.x / kLanes;
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  if (lane == 0) scratch[warp] = value;
  sync_block();
  value = scratch[lane < warps ? lane : 0];
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

} // namespace edlm::cuda
