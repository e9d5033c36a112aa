// Rows as bytes, for kernels that have them in registers.
#pragma once

#include "../plan_cuda.h"
#include "vector.cuh"

namespace edlm::cuda {

// Q: a byte of the result, std::uint8_t or e4m3.
__device__ __forceinline__ float largest_of(std::uint8_t) { return 127.0f; }
__device__ __forceinline__ float largest_of(e4m3) { return 448.0f; }

// The magic number's steps are 1: adding it rounds to an integer, ties to even, and leaves it in the low bits. The same
// operations as on the CPU, and the same bytes.
__device__ __forceinline__ void quantize(std::uint8_t& out, float x) {
  out = static_cast<std::uint8_t>(float_bits(rounded_sum(x, 0x1.8p23f + 128.0f)));
}
__device__ __forceinline__ void quantize(e4m3& out, float x) { round_to(out, x); }

// Quantises a row of which thread i of the block holds the elements (j * threads + i) * N + 0 ... N - 1, for every j.
// scratch: 2 * kLanes floats.
template <class Q, class T, int N>
__device__ __forceinline__ void quantize_held(const Elements<T, N> (&held)[kHeldVectors], std::int64_t columns,
                                              const QuantizedOut& out, std::int64_t row, float* scratch) {
  float most = 0, zero = 0;
#pragma unroll
  for (int j = 0; j < kHeldVectors; ++j) {
    if ((j * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * N >= columns) break;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      most = fmaxf(most, fabsf(to_float(held[j].at[i])));
      zero += to_float(held[j].at[i]) * 0.0f; // NaN where it is not finite: such a row must not come out as numbers
    }
  }
  most = max_block(most, scratch);
  zero = sum_block(zero, scratch + kLanes);
  const float limit = largest_of(Q{});
  if (threadIdx.x == 0) out.scale[row] = most / limit + zero;
  const float inverse = most > 0 ? limit / most : 0.0f;
  Q* q = reinterpret_cast<Q*>(out.q) + row * columns;
#pragma unroll
  for (int j = 0; j < kHeldVectors; ++j) {
    const int at = (j * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * N;
    if (at >= columns) break;
    Elements<Q, N> bytes;
#pragma unroll
    for (int i = 0; i < N; ++i) quantize(bytes.at[i], rounded_product(to_float(held[j].at[i]), inverse));
    store_elements(q + at, bytes);
  }
}

// Calls work(Q) with the type of a result, or with an int where there is none.
template <class Work>
void with_quantized_type(const QuantizedOut& out, const Work& work) {
  if (!out.q) return work(int{});
  out.dtype == DType::e4m3 ? work(e4m3{}) : work(std::uint8_t{});
}

} // namespace edlm::cuda
