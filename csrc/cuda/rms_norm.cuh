// A block per row. Every thread holds its part of the row in registers between the sum of squares and the scaling.
#pragma once

#include <stdexcept>

#include "../plan_cuda.h"
#include "launch.cuh"
#include "vector.cuh"

namespace edlm::cuda {

template <class T, int N>
__global__ void __launch_bounds__(1024) rms_norm_kernel(const RmsNormParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * p.hidden;
  T* x = static_cast<T*>(p.x) + row;
  Elements<T, N> held[kHeldVectors];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kHeldVectors; ++j) {
    const int at = (j * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * N;
    if (at >= p.hidden) break;
    held[j] = load_elements<N>(x + at);
    if (p.delta) {
      const auto delta = load_elements<N>(static_cast<const T*>(p.delta) + row + at);
#pragma unroll
      for (int i = 0; i < N; ++i) round_to(held[j].at[i], to_float(held[j].at[i]) + to_float(delta.at[i]));
      store_elements(x + at, held[j]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) squares += to_float(held[j].at[i]) * to_float(held[j].at[i]);
  }
  const float sum = sum_block(squares, reinterpret_cast<float*>(shared_memory()));
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(p.hidden) + p.eps);
#pragma unroll
  for (int j = 0; j < kHeldVectors; ++j) {
    const int at = (j * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * N;
    if (at >= p.hidden) break;
    const auto weight = load_elements<N>(static_cast<const T*>(p.weight) + at);
    Elements<T, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) round_to(out.at[i], to_float(held[j].at[i]) * scale * to_float(weight.at[i]));
    store_elements(static_cast<T*>(p.out) + row + at, out);
  }
}

template <class T>
void rms_norm_as(const RmsNormParams& p, Stream stream) {
  constexpr int N = kPerAccess<T>;
  const bool wide = p.hidden % N == 0;
  const std::int64_t threads = rms_norm_threads(p.hidden, wide ? N : 1);
  if (threads > 1024) throw std::invalid_argument("rms_norm: the rows are too long for the CUDA kernel");
  launch("rms_norm", wide ? rms_norm_kernel<T, N> : rms_norm_kernel<T, 1>, dim3{static_cast<unsigned>(p.rows)},
         static_cast<int>(threads), 32 * sizeof(float), stream, p);
}

inline void rms_norm(const RmsNormParams& p, Stream stream) {
  if (p.dtype == DType::f32) rms_norm_as<float>(p, stream);
  if (p.dtype == DType::bf16) rms_norm_as<bf16>(p, stream);
  if (p.dtype == DType::f16) rms_norm_as<f16>(p, stream);
}

} // namespace edlm::cuda
