// The two matrix products of a warp's 16 rows: on tensor cores for 16-bit types, by plain multiply-adds for float, in
// the same layout of results. An array x[n][4] holds a matrix [16, 8 n] as mma() does: with g = lane / 4, t = lane % 4
// the elements x[j][0], x[j][1] of row g and x[j][2], x[j][3] of row g + 8 are those of columns 8 j + 2 t and 8 j + 2 t
// + 1.
#pragma once

#include "block_attention_tile.cuh"

namespace edlm::cuda {

template <class S, bool kTensorCores = sizeof(typename S::T) == 2>
struct Products {
  using T = typename S::T;
  std::uint32_t q[S::kHeadDim / 16][4];

  __device__ __forceinline__ Products(const T* shared_q, int row, T*) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll
    for (int k = 0; k < S::kHeadDim / 16; ++k)
      load_matrices(q[k], shared_q + unit_offset<S>(row + lane % 16, 2 * k + lane / 16));
  }

  // scores [16, kWarpKeys] = queries . keys [kWarpKeys, kHeadDim], the rows of a tile from `first` on.
  __device__ __forceinline__ void scores(float (&s)[S::kWarpKeys / 8][4], const T* keys, int first) const {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const int row = first + lane % 8 + lane / 16 * 8, unit = lane / 8 % 2;
#pragma unroll
    for (int j = 0; j < S::kWarpKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = 0;
#pragma unroll
    for (int k = 0; k < S::kHeadDim / 16; ++k)
#pragma unroll
      for (int j = 0; j < S::kWarpKeys / 16; ++j) {
        std::uint32_t b[4];
        load_matrices(b, keys + unit_offset<S>(row + 16 * j, 2 * k + unit));
        mma(T{}, s[2 * j], q[k], b[0], b[1]);
        mma(T{}, s[2 * j + 1], q[k], b[2], b[3]);
      }
  }

  // out [16, kHeadDim] += weights [16, kWarpKeys], rounded to T, . values [kWarpKeys, kHeadDim].
  __device__ __forceinline__ void add(float (&out)[S::kHeadDim / 8][4], const float (&weights)[S::kWarpKeys / 8][4],
                                      const T* values, int first) const {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const int row = first + lane % 16, unit = lane / 16;
#pragma unroll
    for (int k = 0; k < S::kWarpKeys / 16; ++k) {
      const auto &left = weights[2 * k], &right = weights[2 * k + 1];
      const std::uint32_t a[4] = {pack(T{}, left[0], left[1]), pack(T{}, left[2], left[3]),
                                  pack(T{}, right[0], right[1]), pack(T{}, right[2], right[3])};
#pragma unroll
      for (int j = 0; j < S::kHeadDim / 16; ++j) {
        std::uint32_t b[4];
        load_matrices_transposed(b, values + unit_offset<S>(row + 16 * k, 2 * j + unit));
        mma(T{}, out[2 * j], a, b[0], b[1]);
        mma(T{}, out[2 * j + 1], a, b[2], b[3]);
      }
    }
  }
};

template <class S>
struct Products<S, false> {
  const float* q;
  int row;
  float* shared_weights; // [16, kWarpKeys], the warp's own

  __device__ __forceinline__ Products(const float* shared_q, int row, float* all_weights)
      : q(shared_q),
        row(row + static_cast<int>(threadIdx.x) % kLanes / 4),
        shared_weights(all_weights + static_cast<int>(threadIdx.x) / kLanes * 16 * S::kWarpKeys) {}

  __device__ __forceinline__ float dot(const float* keys, int query, int key) const {
    float sum = 0;
#pragma unroll 1
    for (int unit = 0; unit < S::kUnits; ++unit) {
      const auto a = load_elements<4>(q + unit_offset<S>(query, unit));
      const auto b = load_elements<4>(keys + unit_offset<S>(key, unit));
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += a.at[i] * b.at[i];
    }
    return sum;
  }

  __device__ __forceinline__ void scores(float (&s)[S::kWarpKeys / 8][4], const float* keys, int first) const {
    const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int j = 0; j < S::kWarpKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = dot(keys, row + 8 * (i / 2), first + 8 * j + 2 * t + i % 2);
  }

  __device__ __forceinline__ void add(float (&out)[S::kHeadDim / 8][4], const float (&weights)[S::kWarpKeys / 8][4],
                                      const float* values, int first) const {
    const int g = static_cast<int>(threadIdx.x) % kLanes / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int j = 0; j < S::kWarpKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) shared_weights[(g + 8 * (i / 2)) * S::kWarpKeys + 8 * j + 2 * t + i % 2] = weights[j][i];
    sync_warp();
#pragma unroll 1
    for (int key = 0; key < S::kWarpKeys; ++key) {
      const float upper = shared_weights[g * S::kWarpKeys + key], lower = shared_weights[(g + 8) * S::kWarpKeys + key];
#pragma unroll
      for (int j = 0; j < S::kHeadDim / 8; ++j) {
        const int column = 8 * j + 2 * t;
        const auto v = load_elements<2>(values + unit_offset<S>(first + key, column / 4) + column % 4);
        out[j][0] += upper * v.at[0];
        out[j][1] += upper * v.at[1];
        out[j][2] += lower * v.at[0];
        out[j][3] += lower * v.at[1];
      }
    }
    sync_warp();
  }
};

} // namespace edlm::cuda
