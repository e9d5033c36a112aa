// A block per row. Every thread holds its part of the row in registers between the sum of squares and the scaling.
#pragma once

#include <stdexcept>

#include "launch.cuh"
#include "quantize.cuh"

namespace edlm::cuda {

// Q: of the quantised rows, int where there are none.
template <class T, class Q, int N>
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
  auto* scratch = reinterpret_cast<float*>(shared_memory());
  const float sum = sum_block(squares, scratch);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(p.hidden) + p.eps);
#pragma unroll
  for (int j = 0; j < kHeldVectors; ++j) {
    const int at = (j * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * N;
    if (at >= p.hidden) break;
    const auto weight = load_elements<N>(static_cast<const T*>(p.weight) + at);
#pragma unroll
    for (int i = 0; i < N; ++i) round_to(held[j].at[i], to_float(held[j].at[i]) * scale * to_float(weight.at[i]));
    store_elements(static_cast<T*>(p.out) + row + at, held[j]);
  }
  if constexpr (sizeof(Q) == 1) quantize_held<Q>(held, p.hidden, p.quantized, blockIdx.x, scratch + kLanes);
}

template <class T>
void rms_norm_as(const RmsNormParams& p, Stream stream) {
  constexpr int N = kPerAccess<T>;
  const bool wide = p.hidden % N == 0;
  const std::int64_t threads = rms_norm_threads(p.hidden, wide ? N : 1);
  if (threads > 1024) throw std::invalid_argument("rms_norm: the rows are too long for the CUDA kernel");
  with_quantized_type(p.quantized, [&](auto q) {
    using Q = decltype(q);
    const auto kernel = wide ? rms_norm_kernel<T, Q, N> : rms_norm_kernel<T, Q, 1>;
    if (std::is_same_v<Q, e4m3>) check_e4m3("rms_norm", kernel);
    launch("rms_norm", kernel, dim3{static_cast<unsigned>(p.rows)}, static_cast<int>(threads),
           3 * kLanes * sizeof(float), stream, p);
  });
}

inline void rms_norm(const RmsNormParams& p, Stream stream) {
  if (p.dtype == DType::f32) rms_norm_as<float>(p, stream);
  if (p.dtype == DType::bf16) rms_norm_as<bf16>(p, stream);
  if (p.dtype == DType::f16) rms_norm_as<f16>(p, stream);
}

} // namespace edlm::cuda
