// A block per row, which it reads twice; the second time from the first cache.
#pragma once

#include <stdexcept>

#include "../plan_cuda.h"
#include "launch.cuh"
#include "quantize.cuh"

namespace edlm::cuda {

constexpr int kQuantizeThreads = 256;

template <class T, class Q, int N>
__global__ void __launch_bounds__(kQuantizeThreads) quantize_rows_kernel(const QuantizeRowsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.columns;
  Q* q = reinterpret_cast<Q*>(p.q) + row * p.columns;
  const auto columns = static_cast<int>(p.columns), first = static_cast<int>(threadIdx.x) * N;
  float most = 0, zero = 0;
#pragma unroll 4
  for (int at = first; at < columns; at += kQuantizeThreads * N) {
    const auto held = load_elements<N>(x + at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      most = fmaxf(most, fabsf(to_float(held.at[i])));
      zero += to_float(held.at[i]) * 0.0f; // NaN where x is not finite: such a row must not come out as numbers
    }
  }
  auto* scratch = reinterpret_cast<float*>(shared_memory());
  most = max_block(most, scratch);
  zero = sum_block(zero, scratch + kLanes);
  const float limit = largest_of(Q{});
  if (threadIdx.x == 0) p.scale[row] = most / limit + zero;
  const float inverse = most > 0 ? limit / most : 0.0f;
#pragma unroll 4
  for (int at = first; at < columns; at += kQuantizeThreads * N) {
    const auto held = load_elements<N>(x + at);
    Elements<Q, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) quantize(out.at[i], rounded_product(to_float(held.at[i]), inverse));
    store_elements(q + at, out);
  }
}

template <class T, class Q>
void quantize_rows_to(const QuantizeRowsParams& p, Stream stream) {
  constexpr int N = kPerAccess<T>;
  const auto kernel = p.columns % N == 0 ? quantize_rows_kernel<T, Q, N> : quantize_rows_kernel<T, Q, 1>;
  if (p.q_dtype == DType::e4m3) check_e4m3("quantize_rows", kernel);
  launch("quantize_rows", kernel, dim3{static_cast<unsigned>(p.rows)}, kQuantizeThreads, 2 * kLanes * sizeof(float),
         stream, p);
}

template <class T>
void quantize_rows_of(const QuantizeRowsParams& p, Stream stream) {
  p.q_dtype == DType::e4m3 ? quantize_rows_to<T, e4m3>(p, stream) : quantize_rows_to<T, std::uint8_t>(p, stream);
}

inline void quantize_rows(const QuantizeRowsParams& p, Stream stream) {
  if (p.dtype == DType::f32) quantize_rows_of<float>(p, stream);
  if (p.dtype == DType::bf16) quantize_rows_of<bf16>(p, stream);
  if (p.dtype == DType::f16) quantize_rows_of<f16>(p, stream);
}

} // namespace edlm::cuda
