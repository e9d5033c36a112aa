// A thread per 16 bytes of the output. Grid: (rows, parts of a row).
#pragma once

#include "../plan_cuda.h"
#include "launch.cuh"
#include "vector.cuh"

namespace edlm::cuda {

constexpr int kSiluThreads = 256;

template <class T, int N>
__global__ void __launch_bounds__(kSiluThreads) silu_mul_kernel(const SiluMulParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t row = blockIdx.x, column = static_cast<std::int64_t>(blockIdx.y * kSiluThreads + threadIdx.x) * N;
  if (column >= p.inner) return;
  const T* from = static_cast<const T*>(p.gate_up) + row * 2 * p.inner + column;
  const auto gate = load_elements<N>(from), up = load_elements<N>(from + p.inner);
  Elements<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float g = to_float(gate.at[i]);
    round_to(out.at[i], g / (1.0f + expf(-g)) * to_float(up.at[i]));
  }
  store_elements(static_cast<T*>(p.out) + row * p.inner + column, out);
}

template <class T>
void silu_mul_as(const SiluMulParams& p, Stream stream) {
  constexpr int N = kPerAccess<T>;
  const bool wide = p.inner % N == 0;
  const std::int64_t parts = ceil_div(p.inner, kSiluThreads * (wide ? N : 1));
  launch("silu_mul", wide ? silu_mul_kernel<T, N> : silu_mul_kernel<T, 1>,
         dim3{static_cast<unsigned>(p.rows), static_cast<unsigned>(parts)}, kSiluThreads, 0, stream, p);
}

inline void silu_mul(const SiluMulParams& p, Stream stream) {
  if (p.dtype == DType::f32) silu_mul_as<float>(p, stream);
  if (p.dtype == DType::bf16) silu_mul_as<bf16>(p, stream);
  if (p.dtype == DType::f16) silu_mul_as<f16>(p, stream);
}

} // namespace edlm::cuda
