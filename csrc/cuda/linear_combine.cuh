// From sums to outputs: where one block of threads has all of a sum, at once, else over the splits, in their order.
#pragma once

#include <stdexcept>
#include <type_traits>

#include "../plan_cuda.h"
#include "launch.cuh"
#include "vector.cuh"

namespace edlm::cuda {

constexpr int kQuads = kGroupOutputs / 4; // of a group: four neighbouring outputs are written at a time
constexpr int kLinearCombineThreads = 256;

template <class T>
using SumOf = std::conditional_t<std::is_same_v<T, std::int8_t>, std::int32_t, float>;

template <class Out>
__device__ __forceinline__ void store_quad(const LinearParams& p, std::int64_t row, std::int64_t output,
                                           const float (&values)[4]) {
  Out* out = static_cast<Out*>(p.out) + row * p.outputs + output;
  Elements<Out, 4> rounded;
#pragma unroll
  for (int i = 0; i < 4; ++i) round_to(rounded.at[i], values[i]);
  if (p.outputs % 4 == 0) {
    if (output < p.outputs) store_elements(out, rounded);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (output + i < p.outputs) out[i] = rounded.at[i];
  }
}

// Complete sums of one row and four outputs, scaled once.
template <class T>
__device__ __forceinline__ void write_outputs(const LinearParams& p, std::int64_t row, std::int64_t group, int quad,
                                              const Elements<SumOf<T>, 4>& sums) {
  float values[4];
  if constexpr (sizeof(T) == 1) {
    const std::int64_t words = group_words(p.inputs, 1);
    const auto* scales = reinterpret_cast<const float*>(p.weight + (group + 1) * words - kGroupOutputs);
    const auto scale = load_elements<4>(scales + quad * 4);
    const float x_scale = p.x_scale[row];
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = static_cast<float>(sums.at[i]) * (scale.at[i] * x_scale);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = sums.at[i];
  }
  const std::int64_t output = group * kGroupOutputs + quad * 4;
  if (p.dtype == DType::f32) store_quad<float>(p, row, output, values);
  if (p.dtype == DType::bf16) store_quad<bf16>(p, row, output, values);
  if (p.dtype == DType::f16) store_quad<f16>(p, row, output, values);
}

// What a block of threads has summed.
template <class T>
__device__ __forceinline__ void write_sums(const LinearParams& p, std::int64_t row, std::int64_t group, int quad,
                                           const Elements<SumOf<T>, 4>& sums) {
  if (row >= p.rows) return;
  if (p.splits == 1) return write_outputs<T>(p, row, group, quad, sums);
  auto* partial = static_cast<SumOf<T>*>(p.partial);
  store_elements(partial + (blockIdx.z * p.rows + row) * padded_outputs(p.outputs) + group * kGroupOutputs + quad * 4,
                 sums);
}

// A thread per row and four outputs. Grid: (rows, parts of a row).
template <class T>
__global__ void __launch_bounds__(kLinearCombineThreads) linear_combine_kernel(const LinearParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t padded = padded_outputs(p.outputs), row = blockIdx.x;
  const auto at = static_cast<int>(blockIdx.y) * kLinearCombineThreads + static_cast<int>(threadIdx.x);
  if (at * 4 >= padded) return;
  const auto* from = static_cast<const SumOf<T>*>(p.partial) + row * padded + at * 4;
  auto total = load_elements<4>(from);
#pragma unroll 4
  for (int split = 1; split < p.splits; ++split) {
    const auto other = load_elements<4>(from + split * p.rows * padded);
#pragma unroll
    for (int i = 0; i < 4; ++i) total.at[i] += other.at[i];
  }
  write_outputs<T>(p, row, at / kQuads, at % kQuads, total);
}

template <class T>
void linear_combine(const LinearParams& p, Stream stream) {
  const std::int64_t parts = ceil_div(padded_outputs(p.outputs) / 4, kLinearCombineThreads);
  launch("linear (combine)", linear_combine_kernel<T>,
         dim3{static_cast<unsigned>(p.rows), static_cast<unsigned>(parts)}, kLinearCombineThreads, 0, stream, p);
}

} // namespace edlm::cuda
