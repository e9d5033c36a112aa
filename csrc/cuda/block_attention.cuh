// Attention of query blocks over the paged cache. Grid: (splits of the keys, kv heads, row tiles). The packed rows of a
// kv head (query rows x heads of the group) are the rows of the matrix products, so K and V are read once per row tile;
// they pass through `stages` tiles of shared memory. Lengths are read on the device: the grid depends on shapes alone,
// and what is beyond the lengths exits.
#pragma once

#include <stdexcept>

#include "block_attention_combine.cuh"
#include "block_attention_product.cuh"
#include "launch.cuh"

namespace edlm::cuda {

// Of rows g and g + 8 of a warp: the online softmax (Milakov, Gimelshein, arXiv:1805.02867), exponents to base 2.
template <class S>
struct SoftmaxState {
  float out[S::kHeadDim / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  // Scores of keys from `first` on become weights; row r sees the keys before limit[r].
  __device__ __forceinline__ void absorb(float (&s)[S::kWarpKeys / 8][4], int first, const int (&limit)[2], bool masked,
                                         float scale) {
    const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = -INFINITY;
#pragma unroll
      for (int j = 0; j < S::kWarpKeys / 8; ++j)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          if (masked && first + 8 * j + 2 * t + i % 2 >= limit[r]) s[j][i] = -INFINITY;
          largest = fmaxf(largest, s[j][i]);
        }
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));
      const float new_max = fmaxf(max[r], largest * scale);
      const float base = new_max == -INFINITY ? 0.0f : new_max, keep = fast_exp2(max[r] - base);
      float total = 0;
#pragma unroll
      for (int j = 0; j < S::kWarpKeys / 8; ++j)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) total += s[j][i] = fast_exp2(s[j][i] * scale - base);
      max[r] = new_max;
      sum[r] = sum[r] * keep + total;
#pragma unroll
      for (int j = 0; j < S::kHeadDim / 8; ++j) {
        out[j][2 * r] *= keep;
        out[j][2 * r + 1] *= keep;
      }
    }
  }
};

// Adds the states of the other key warps to that of the first, in their order. scratch: [kKeyWarps - 1, kRowWarps,
// kLanes, values of a state] floats.
template <class S>
__device__ __forceinline__ void merge_key_warps(SoftmaxState<S>& state, float* scratch, int row_warp, int key_warp) {
  constexpr int kValues = S::kHeadDim / 2 + 4;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const auto place = [&](int warp, int value) { // neighbouring lanes, neighbouring banks
    return scratch + (((warp - 1) * S::kRowWarps + row_warp) * kValues + value) * kLanes + lane;
  };
  if (key_warp > 0) {
#pragma unroll
    for (int i = 0; i < S::kHeadDim / 2; ++i) *place(key_warp, i) = state.out[i / 4][i % 4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      *place(key_warp, kValues - 4 + r) = state.max[r];
      *place(key_warp, kValues - 2 + r) = state.sum[r];
    }
  }
  sync_block();
  if (key_warp > 0) return;
  for (int warp = 1; warp < S::kKeyWarps; ++warp)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float other = *place(warp, kValues - 4 + r), new_max = fmaxf(state.max[r], other);
      const float base = new_max == -INFINITY ? 0.0f : new_max;
      const float keep = fast_exp2(state.max[r] - base), add = fast_exp2(other - base);
      state.max[r] = new_max;
      state.sum[r] = state.sum[r] * keep + *place(warp, kValues - 2 + r) * add;
#pragma unroll
      for (int i = 0; i < S::kHeadDim / 2; ++i)
        if (i / 2 % 2 == r) state.out[i / 4][i % 4] = state.out[i / 4][i % 4] * keep + *place(warp, i) * add;
    }
}

// The finished rows to `out`, or those of one split of several to the partial results.
template <class S>
__device__ __forceinline__ void write_rows(const BlockAttentionParams& p, const RowTile& tile, int group, int kv_head,
                                           int row_warp, bool whole, const SoftmaxState<S>& state) {
  using T = typename S::T;
  const int g = static_cast<int>(threadIdx.x) % kLanes / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = sum_lanes(state.sum[r], 4);
    const int row = 16 * row_warp + g + 8 * r;
    if (row >= tile.count) continue;
    const std::int64_t at = row_offset(p, tile, row, group, kv_head);
    const std::int64_t split = blockIdx.x * p.rows * p.heads;
    const float factor = whole ? 1.0f / sum : 1.0f;
    if (!whole && t == 0)
      store_elements(p.partial_max_sum + (split + at / S::kHeadDim) * 2, Elements<float, 2>{{state.max[r], sum}});
#pragma unroll
    for (int j = 0; j < S::kHeadDim / 8; ++j) {
      const float left = state.out[j][2 * r] * factor, right = state.out[j][2 * r + 1] * factor;
      const int column = 8 * j + 2 * t;
      if (whole) {
        Elements<T, 2> pair;
        round_to(pair.at[0], left);
        round_to(pair.at[1], right);
        store_elements(static_cast<T*>(p.out) + at + column, pair);
      } else {
        store_elements(p.partial_out + split * S::kHeadDim + at + column, Elements<float, 2>{{left, right}});
      }
    }
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) block_attention_kernel(const BlockAttentionParams p) {
  using T = typename S::T;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int group = static_cast<int>(p.heads / p.kv_heads), kv_head = static_cast<int>(blockIdx.y);
  const RowTile tile = find_row_tile<S>(p, static_cast<int>(blockIdx.z), group);
  if (tile.count == 0) return;
  const int all_keys = visible_keys(tile.block, tile.first + tile.count - 1, group);
  const int chunk = split_keys(all_keys, p.splits), begin = static_cast<int>(blockIdx.x) * chunk;
  if (begin >= all_keys) return;
  const int end = begin + chunk < all_keys ? begin + chunk : all_keys;

  T* shared_q = reinterpret_cast<T*>(shared_memory());
  T* shared_tiles = shared_q + S::kRows * S::kHeadDim;
  T* shared_weights = shared_tiles + p.stages * 2 * S::kTile; // float only
  const KeySource<S> source(p, tile.block.slot, kv_head, end);
  copy_queries<S>(p, tile, group, kv_head, shared_q);
  for (int stage = 0; stage < p.stages - 1; ++stage) {
    if (begin + stage * S::kKeys < end) source.copy_tile(begin + stage * S::kKeys, shared_tiles + stage * 2 * S::kTile);
    copy_commit();
  }
  const auto wait = [&] { p.stages == 3 ? copy_wait<1>() : copy_wait<0>(); };
  wait();
  sync_block();

  const int warp = static_cast<int>(threadIdx.x) / kLanes, row_warp = warp % S::kRowWarps, key_warp = warp / S::kRowWarps;
  const Products<S> products(shared_q, 16 * row_warp, shared_weights);
  SoftmaxState<S> state;
  const int row = tile.first + 16 * row_warp + static_cast<int>(threadIdx.x) % kLanes / 4;
  const int limit[2] = {visible_keys(tile.block, row, group), visible_keys(tile.block, row + 8, group)};
  const int all_see = visible_keys(tile.block, tile.first, group);
  const float scale = p.scale * 1.44269504f; // log2 e
  int stage = 0;
  for (int first = begin; first < end; first += S::kKeys) {
    wait();
    sync_block(); // this tile is there for all, and nobody reads the one before any more
    const int ahead = first + (p.stages - 1) * S::kKeys;
    if (ahead < end) source.copy_tile(ahead, shared_tiles + (stage == 0 ? p.stages - 1 : stage - 1) * 2 * S::kTile);
    copy_commit();
    const T* keys = shared_tiles + stage * 2 * S::kTile;
    float s[S::kWarpKeys / 8][4];
    products.scores(s, keys, key_warp * S::kWarpKeys);
    state.absorb(s, first + key_warp * S::kWarpKeys, limit, first + S::kKeys > all_see, scale);
    products.add(state.out, s, keys + S::kTile, key_warp * S::kWarpKeys);
    stage = stage + 1 == p.stages ? 0 : stage + 1;
  }
  if constexpr (S::kKeyWarps > 1) {
    copy_wait<0>();
    sync_block(); // nobody reads the tiles any more
    merge_key_warps(state, reinterpret_cast<float*>(shared_tiles), row_warp, key_warp);
  }
  if (key_warp == 0) write_rows(p, tile, group, kv_head, row_warp, chunk >= all_keys, state);
}

template <class S>
void block_attention_as(const BlockAttentionParams& p, const AttentionPlan& plan, Stream stream) {
  static_assert((S::kKeyWarps - 1) * S::kRows * (S::kHeadDim + 8) * 4 <= 2 * 2 * S::kTile * sizeof(typename S::T));
  launch("block_attention", block_attention_kernel<S>,
         dim3{static_cast<unsigned>(plan.splits), static_cast<unsigned>(p.kv_heads), static_cast<unsigned>(plan.tiles)},
         S::kThreads, static_cast<std::size_t>(plan.shared_bytes), stream, p);
  if (plan.splits > 1) combine_splits<typename S::T, S::kHeadDim>(p, stream);
}

template <class T, int kHeadDim>
void block_attention_head(const BlockAttentionParams& p, const AttentionPlan& plan, Stream stream) {
  if constexpr (sizeof(T) == 4)
    block_attention_as<AttentionShape<T, kHeadDim, 2, 2>>(p, plan, stream);
  else if (plan.row_tile == 16)
    block_attention_as<AttentionShape<T, kHeadDim, 1, 4>>(p, plan, stream);
  else if (plan.row_tile == 64)
    block_attention_as<AttentionShape<T, kHeadDim, 4, 1>>(p, plan, stream);
  else
    block_attention_as<AttentionShape<T, kHeadDim, 8, 1>>(p, plan, stream);
}

// p.row_tile, splits and stages are those of the plan.
template <class T>
void block_attention_typed(const BlockAttentionParams& p, const AttentionPlan& plan, Stream stream) {
  if (p.rows == 0 || p.num_blocks == 0) return;
  if (p.head_dim != 64 && p.head_dim != 128)
    throw std::invalid_argument("block_attention: want a head size of 64 or 128");
  p.head_dim == 64 ? block_attention_head<T, 64>(p, plan, stream) : block_attention_head<T, 128>(p, plan, stream);
}

#if !defined(EDLM_HOST_SIM) // each has its own .cu: they take long to compile
extern template void block_attention_typed<float>(const BlockAttentionParams&, const AttentionPlan&, Stream);
extern template void block_attention_typed<bf16>(const BlockAttentionParams&, const AttentionPlan&, Stream);
extern template void block_attention_typed<f16>(const BlockAttentionParams&, const AttentionPlan&, Stream);
#endif

inline void block_attention(const BlockAttentionParams& p, const AttentionPlan& plan, Stream stream) {
  if (p.dtype == DType::f32) block_attention_typed<float>(p, plan, stream);
  if (p.dtype == DType::bf16) block_attention_typed<bf16>(p, plan, stream);
  if (p.dtype == DType::f16) block_attention_typed<f16>(p, plan, stream);
}

} // namespace edlm::cuda
