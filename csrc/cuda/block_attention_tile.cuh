// Which rows and keys a block works on, and their way into shared memory.
#pragma once

#include "../plan_cuda.h"
#include "vector.cuh"

namespace edlm::cuda {

// kRowWarps warps share the packed rows, 16 each; kKeyWarps warps share the keys of every tile.
template <class Element, int kHeadDimension, int kRowWarpCount, int kKeyWarpCount>
struct AttentionShape {
  using T = Element;
  static constexpr int kHeadDim = kHeadDimension, kRowWarps = kRowWarpCount, kKeyWarps = kKeyWarpCount;
  static constexpr int kThreads = kLanes * kRowWarps * kKeyWarps;
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kKeys = cuda_key_tile(sizeof(T)), kWarpKeys = kKeys / kKeyWarps;
  static constexpr int kPerUnit = 16 / sizeof(T), kUnits = kHeadDim / kPerUnit; // units of 16 bytes of a row
  static constexpr int kTile = kKeys * kHeadDim;                                // elements of a tile of keys
};

// Where a unit of a row [kHeadDim] lies in shared memory, in elements. The units of 8 neighbouring rows are permuted so
// that the same unit of all 8 is spread over the banks.
template <class S>
__device__ __forceinline__ int unit_offset(int row, int unit) {
  static_assert(S::kUnits >= 8);
  return (row * S::kUnits + (unit ^ (row & 7))) * S::kPerUnit;
}

struct RowTile {
  QueryBlock block;
  int first, count; // packed rows
};

// Keys that packed row i of a query block sees.
__device__ __forceinline__ int visible_keys(const QueryBlock& block, int i, int group) {
  return block.causal ? block.kv_len - (block.length - 1 - i / group) : block.kv_len;
}

// The sum over the lanes up to this one.
__device__ __forceinline__ int sum_upto_lane(int value, int lane) {
#pragma unroll
  for (int delta = 1; delta < kLanes; delta *= 2) {
    const int below = shuffle_up(value, delta);
    if (lane >= delta) value += below;
  }
  return value;
}

// Tile `index` of all query blocks' row tiles; count is 0 where there are fewer.
template <class S>
__device__ __forceinline__ RowTile find_row_tile(const BlockAttentionParams& p, int index, int group) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, blocks = static_cast<int>(p.num_blocks);
  for (int base = 0; base < blocks; base += kLanes) {
    int tiles = 0;
    if (base + lane < blocks && p.blocks[base + lane].slot >= 0)
      tiles = (p.blocks[base + lane].length * group + S::kRows - 1) / S::kRows;
    const int upto = sum_upto_lane(tiles, lane), total = shuffle(upto, kLanes - 1);
    if (index < total) {
      const bool mine = index < upto && index >= upto - tiles;
      int owner = mine ? lane : 0;
      for (int mask = kLanes / 2; mask > 0; mask /= 2) owner += shuffle_xor(owner, mask);
      const QueryBlock block = p.blocks[base + owner];
      const int first = (index - shuffle(upto - tiles, owner)) * S::kRows;
      const int left = block.length * group - first;
      return {block, first, left < S::kRows ? left : S::kRows};
    }
    index -= total;
  }
  return {};
}

// Element offset of a packed row's head in q and out.
__device__ __forceinline__ std::int64_t row_offset(const BlockAttentionParams& p, const RowTile& tile, int i, int group,
                                                   int kv_head) {
  const int packed = tile.first + i;
  const std::int64_t row = tile.block.row + packed / group;
  return (row * p.heads + kv_head * group + packed % group) * p.head_dim;
}

// Begins to copy the queries of a tile, zeros in rows that it does not have.
template <class S>
__device__ __forceinline__ void copy_queries(const BlockAttentionParams& p, const RowTile& tile, int group,
                                             int kv_head, typename S::T* shared) {
  const auto* q = static_cast<const typename S::T*>(p.q);
  for (int i = static_cast<int>(threadIdx.x); i < S::kRows * S::kUnits; i += S::kThreads) {
    const int row = i / S::kUnits, unit = i % S::kUnits;
    const bool valid = row < tile.count;
    const std::int64_t from = valid ? row_offset(p, tile, row, group, kv_head) + unit * S::kPerUnit : 0;
    copy_async(shared + unit_offset<S>(row, unit), q + from, valid);
  }
}

// Keys and values of one kv head of one sequence.
template <class S>
struct KeySource {
  using T = typename S::T;
  const T *keys, *values;
  const std::int32_t* pages;
  int page_shift, kv_heads, kv_head, end;

  __device__ __forceinline__ KeySource(const BlockAttentionParams& p, int slot, int kv_head, int end)
      : keys(static_cast<const T*>(p.cache.k_cache)),
        values(static_cast<const T*>(p.cache.v_cache)),
        pages(p.cache.page_table + slot * p.cache.max_pages),
        page_shift(0),
        kv_heads(static_cast<int>(p.kv_heads)),
        kv_head(kv_head),
        end(end) {
    while ((1 << page_shift) < p.cache.page_size) ++page_shift;
  }

  // Begins to copy a tile from position `first` on: keys [kKeys, kHeadDim], then values; zeros from `end` on, for what
  // lies there is unwritten memory, and 0 * NaN would reach the sums.
  __device__ __forceinline__ void copy_tile(int first, T* shared) const {
    for (int i = static_cast<int>(threadIdx.x); i < S::kKeys * S::kUnits; i += S::kThreads) {
      const int row = i / S::kUnits, unit = i % S::kUnits, position = first + row;
      const bool valid = position < end;
      std::int64_t from = 0;
      if (valid) {
        const std::int64_t line = static_cast<std::int64_t>(pages[position >> page_shift]) * kv_heads + kv_head;
        const int offset = position & ((1 << page_shift) - 1);
        from = ((line << page_shift) + offset) * S::kHeadDim + unit * S::kPerUnit;
      }
      const int to = unit_offset<S>(row, unit);
      copy_async(shared + to, keys + from, valid);
      copy_async(shared + S::kTile + to, values + from, valid);
    }
  }
};

} // namespace edlm::cuda
