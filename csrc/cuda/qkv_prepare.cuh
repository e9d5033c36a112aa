// kHeadDim / 4 lanes per row and head; a lane holds two neighbours of the head's first half and their partners of the
// second, so the rotation stays within a lane.
#pragma once

#include <stdexcept>

#include "../plan_cuda.h"
#include "launch.cuh"
#include "vector.cuh"

namespace edlm::cuda {

constexpr int kQkvThreads = 128;

template <class T>
__device__ __forceinline__ void load_quad(float (&x)[4], const T* from, int half) {
  const auto a = load_elements<2>(from), b = load_elements<2>(from + half);
  x[0] = to_float(a.at[0]);
  x[1] = to_float(a.at[1]);
  x[2] = to_float(b.at[0]);
  x[3] = to_float(b.at[1]);
}

template <class T>
__device__ __forceinline__ void store_quad(T* to, int half, const float (&x)[4]) {
  Elements<T, 2> a, b;
  round_to(a.at[0], x[0]);
  round_to(a.at[1], x[1]);
  round_to(b.at[0], x[2]);
  round_to(b.at[1], x[3]);
  store_elements(to, a);
  store_elements(to + half, b);
}

// All lanes of the warp come here; those of a head whose norm is null keep their x.
template <class T, int kHeadDim>
__device__ __forceinline__ void norm_quad(float (&x)[4], const T* norm, float eps) {
  const float squares = sum_lanes(x[0] * x[0] + x[1] * x[1] + x[2] * x[2] + x[3] * x[3], kHeadDim / 4);
  if (!norm) return;
  const float scale = 1.0f / sqrtf(squares / kHeadDim + eps);
  float weight[4];
  load_quad(weight, norm, kHeadDim / 2);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = x[i] * scale * weight[i];
}

__device__ __forceinline__ void rotate_quad(float (&x)[4], const float* cos_sin, int half) {
  const auto cos = load_elements<2>(cos_sin), sin = load_elements<2>(cos_sin + half);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float a = x[i], b = x[i + 2];
    x[i] = a * cos.at[i] - b * sin.at[i];
    x[i + 2] = b * cos.at[i] + a * sin.at[i];
  }
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kQkvThreads) qkv_prepare_kernel(const QkvPrepareParams p) {
  constexpr int kHalf = kHeadDim / 2, kGroup = kHeadDim / 4;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int heads = static_cast<int>(p.heads + 2 * p.kv_heads);
  const int item = static_cast<int>(blockIdx.x * (kQkvThreads / kGroup) + threadIdx.x / kGroup);
  const std::int64_t row = item / heads, head = item - row * heads;
  const bool active = row < p.rows && p.slots[row] >= 0;
  const int at = static_cast<int>(threadIdx.x) % kGroup * 2;
  const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;
  float x[4] = {};
  if (active) load_quad(x, static_cast<const T*>(p.qkv) + static_cast<std::int64_t>(item) * kHeadDim + at, kHalf);
  if (active && p.bias) {
    float bias[4];
    load_quad(bias, static_cast<const T*>(p.bias) + head * kHeadDim + at, kHalf);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] += bias[i];
  }
  const auto* norm = static_cast<const T*>(is_v ? nullptr : is_q ? p.q_norm : p.k_norm);
  norm_quad<T, kHeadDim>(x, norm ? norm + at : nullptr, p.eps);
  if (!active) return;
  const int position = p.positions[row], page_size = static_cast<int>(p.cache.page_size);
  if (!is_v) rotate_quad(x, p.cos_sin + static_cast<std::int64_t>(position) * kHeadDim + at, kHalf);
  if (is_q) return store_quad(static_cast<T*>(p.q) + (row * p.heads + head) * kHeadDim + at, kHalf, x);

  const PagedCache& cache = p.cache;
  const std::int64_t kv_head = head - p.heads - (is_v ? p.kv_heads : 0);
  const std::int64_t page = cache.page_table[p.slots[row] * cache.max_pages + position / page_size];
  const std::int64_t line = (page * p.kv_heads + kv_head) * page_size + position % page_size;
  store_quad(static_cast<T*>(is_v ? cache.v_cache : cache.k_cache) + line * kHeadDim + at, kHalf, x);
}

template <class T>
void qkv_prepare_as(const QkvPrepareParams& p, Stream stream) {
  const std::int64_t lanes = p.rows * (p.heads + 2 * p.kv_heads) * (p.head_dim / 4);
  if (p.head_dim != 64 && p.head_dim != 128) throw std::invalid_argument("qkv_prepare: want a head size of 64 or 128");
  launch("qkv_prepare", p.head_dim == 64 ? qkv_prepare_kernel<T, 64> : qkv_prepare_kernel<T, 128>,
         dim3{static_cast<unsigned>(ceil_div(lanes, kQkvThreads))}, kQkvThreads, 0, stream, p);
}

inline void qkv_prepare(const QkvPrepareParams& p, Stream stream) {
  if (p.dtype == DType::f32) qkv_prepare_as<float>(p, stream);
  if (p.dtype == DType::bf16) qkv_prepare_as<bf16>(p, stream);
  if (p.dtype == DType::f16) qkv_prepare_as<f16>(p, stream);
}

} // namespace edlm::cuda
