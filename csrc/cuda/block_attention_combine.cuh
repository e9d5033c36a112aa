// The sum of the splits' partial results, a warp per row and head, always in the same order.
#pragma once

#include "block_attention_tile.cuh"
#include "launch.cuh"

namespace edlm::cuda {

constexpr int kCombineThreads = 256;

// Splits that the row's tile was divided into; 0 if no query block has the row.
__device__ __forceinline__ int splits_of_row(const BlockAttentionParams& p, int row, int head) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, group = static_cast<int>(p.heads / p.kv_heads);
  int splits = 0;
  for (int i = lane; i < p.num_blocks; i += kLanes) {
    const QueryBlock block = p.blocks[i];
    if (block.slot < 0 || row < block.row || row >= block.row + block.length) continue;
    const int packed = (row - block.row) * group + head % group, packed_rows = block.length * group;
    const int tile_end = (packed / p.row_tile + 1) * p.row_tile;
    const int last = (tile_end < packed_rows ? tile_end : packed_rows) - 1;
    const int keys = visible_keys(block, last, group), chunk = split_keys(keys, p.splits);
    splits = (keys + chunk - 1) / chunk;
  }
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const int other = shuffle_xor(splits, mask);
    splits = other > splits ? other : splits;
  }
  return splits;
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kCombineThreads) combine_splits_kernel(const BlockAttentionParams p) {
  static_assert(kMaxSplits <= kLanes);
  constexpr int N = kHeadDim / kLanes; // elements of a lane
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t item = (static_cast<std::int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x) / kLanes;
  const std::int64_t items = p.rows * p.heads;
  if (item >= items) return;
  const int row = static_cast<int>(item) / static_cast<int>(p.heads);
  const int splits = splits_of_row(p, row, static_cast<int>(item) - row * static_cast<int>(p.heads));
  if (splits <= 1) return;
  float max = -INFINITY, sum = 0;
  if (lane < splits) {
    const auto own = load_elements<2>(p.partial_max_sum + (lane * items + item) * 2);
    max = own.at[0];
    sum = own.at[1];
  }
  float largest = max;
  for (int mask = kLanes / 2; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
  const float factor = max == -INFINITY ? 0.0f : fast_exp2(max - largest);
  const float share = factor / sum_lanes(sum * factor);
  float out[N] = {};
  for (int split = 0; split < splits; ++split) {
    const float weight = shuffle(share, split);
    const auto part = load_elements<N>(p.partial_out + (split * items + item) * kHeadDim + lane * N);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] += part.at[i] * weight;
  }
  Elements<T, N> rounded;
#pragma unroll
  for (int i = 0; i < N; ++i) round_to(rounded.at[i], out[i]);
  store_elements(static_cast<T*>(p.out) + item * kHeadDim + lane * N, rounded);
}

template <class T, int kHeadDim>
void combine_splits(const BlockAttentionParams& p, Stream stream) {
  const std::int64_t threads = p.rows * p.heads * kLanes;
  launch("block_attention (combine)", combine_splits_kernel<T, kHeadDim>,
         dim3{static_cast<unsigned>(ceil_div(threads, kCombineThreads))}, kCombineThreads, 0, stream, p);
}

} // namespace edlm::cuda
