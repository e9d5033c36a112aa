// A thread per 16 bytes of the output. Grid: (rows, parts of a row). Where the rows are quantised, too, a block per row.
#pragma once

#include "launch.cuh"
#include "quantize_rows.cuh"

namespace edlm::cuda {

constexpr int kSiluThreads = 256;

template <class T, int N>
__device__ __forceinline__ Elements<T, N> silu_product(const T* gate_up, std::int64_t inner) {
  const auto gate = load_elements<N>(gate_up), up = load_elements<N>(gate_up + inner);
  Elements<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float g = to_float(gate.at[i]);
    round_to(out.at[i], g / (1.0f + expf(-g)) * to_float(up.at[i]));
  }
  return out;
}

template <class T, int N>
__global__ void __launch_bounds__(kSiluThreads) silu_mul_kernel(const SiluMulParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t row = blockIdx.x, column = static_cast<std::int64_t>(blockIdx.y * kSiluThreads + threadIdx.x) * N;
  if (column >= p.inner) return;
  const T* from = static_cast<const T*>(p.gate_up) + row * 2 * p.inner + column;
  store_elements(static_cast<T*>(p.out) + row * p.inner + column, silu_product<T, N>(from, p.inner));
}

template <class T, class Q, int N>
__global__ void __launch_bounds__(1024) silu_mul_quantize_kernel(const SiluMulParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t row = blockIdx.x;
  Elements<T, N> held[kHeldVectors];
#pragma unroll
  for (int j = 0; j < kHeldVectors; ++j) {
    const int at = (j * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * N;
    if (at >= p.inner) break;
    held[j] = silu_product<T, N>(static_cast<const T*>(p.gate_up) + row * 2 * p.inner + at, p.inner);
    store_elements(static_cast<T*>(p.out) + row * p.inner + at, held[j]);
  }
  quantize_held<Q>(held, p.inner, p.quantized, row, reinterpret_cast<float*>(shared_memory()));
}

template <class T, class Q>
void silu_mul_quantized(const SiluMulParams& p, std::int64_t threads, bool wide, Stream stream) {
  const auto kernel =
      wide ? silu_mul_quantize_kernel<T, Q, kPerAccess<T>> : silu_mul_quantize_kernel<T, Q, 1>;
  if (std::is_same_v<Q, e4m3>) check_e4m3("silu_mul", kernel);
  launch("silu_mul", kernel, dim3{static_cast<unsigned>(p.rows)}, static_cast<int>(threads),
         2 * kLanes * sizeof(float), stream, p);
}

template <class T>
void silu_mul_as(const SiluMulParams& p, Stream stream) {
  constexpr int N = kPerAccess<T>;
  const bool wide = p.inner % N == 0;
  const QuantizedOut& out = p.quantized;
  const std::int64_t threads = rms_norm_threads(p.inner, wide ? N : 1);
  if (out.q && threads <= 1024)
    return out.dtype == DType::e4m3 ? silu_mul_quantized<T, e4m3>(p, threads, wide, stream)
                                    : silu_mul_quantized<T, std::uint8_t>(p, threads, wide, stream);
  const std::int64_t parts = ceil_div(p.inner, kSiluThreads * (wide ? N : 1));
  launch("silu_mul", wide ? silu_mul_kernel<T, N> : silu_mul_kernel<T, 1>,
         dim3{static_cast<unsigned>(p.rows), static_cast<unsigned>(parts)}, kSiluThreads, 0, stream, p);
  if (out.q) quantize_rows({p.dtype, p.rows, p.inner, p.out, out.q, out.scale, out.dtype}, stream);
}

inline void silu_mul(const SiluMulParams& p, Stream stream) {
  if (p.dtype == DType::f32) silu_mul_as<float>(p, stream);
  if (p.dtype == DType::bf16) silu_mul_as<bf16>(p, stream);
  if (p.dtype == DType::f16) silu_mul_as<f16>(p, stream);
}

} // namespace edlm::cuda
