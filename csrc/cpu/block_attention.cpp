// A work item is a tile of packed query rows of one kv head. Its scores are computed transposed, S^T [keys, rows]: keys
// are read from their pages as they lie, the queries are packed once, and the softmax runs along lanes of rows.
#include "../plan.h"
#include "gemm_tile.h"
#include "kernels.h"
#include "vec.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

// A thread's scratch.
template <class T>
struct Workspace {
  std::uint32_t* q;       // units [dim / kPerUnit, kRowTile]
  float* scores;          // [kKeyTile, kRowTile]
  std::uint32_t* weights; // units [kKeyTile / kPerUnit, kRowTile]: e^(score - max)
  std::uint32_t* v;       // units [kKeyTile / kPerUnit, dim]
  float* out;             // [kRowTile, dim], not yet divided by sum
  float *max, *sum;       // [kRowTile]
  std::int32_t* limit;    // [kRowTile]: the keys that a row sees

  static std::int64_t bytes(std::int64_t dim) {
    return kRowTile * (dim * (sizeof(T) + 4) + kKeyTile * (sizeof(T) + 4) + 12) + kKeyTile * dim * sizeof(T);
  }

  Workspace(void* memory, std::int64_t dim) {
    auto* at = static_cast<char*>(memory);
    auto take = [&](auto*& field, std::int64_t bytes) {
      field = reinterpret_cast<std::remove_reference_t<decltype(field)>>(at);
      at += bytes;
    };
    take(q, kRowTile * dim * sizeof(T));
    take(scores, kKeyTile * kRowTile * 4);
    take(weights, kKeyTile * kRowTile * sizeof(T));
    take(v, kKeyTile * dim * sizeof(T));
    take(out, kRowTile * dim * 4);
    take(max, kRowTile * 4);
    take(sum, kRowTile * 4);
    take(limit, kRowTile * 4);
  }
};

// v [kKeyGroup, dim] -> units [kKeyGroup / kPerUnit, dim]. Keys from `valid` on count as zeros: what lies there is
// unwritten memory, and 0 * NaN would reach the sums.
void pack_values(const float* v, std::int64_t dim, std::int64_t valid, std::uint32_t* packed) {
  std::memcpy(packed, v, valid * dim * 4);
  std::memset(packed + valid * dim, 0, (kKeyGroup - valid) * dim * 4);
}

void pack_values(const bf16* v, std::int64_t dim, std::int64_t valid, std::uint32_t* packed) {
  const auto row = [=](std::int64_t i, std::int64_t d) {
    HalfVec half{};
    if (i < valid) std::memcpy(&half, v + i * dim + d, sizeof(half));
    return widen(half);
  };
  for (std::int64_t key = 0; key < kKeyGroup; key += 2)
    for (std::int64_t d = 0; d < dim; d += kWidth) {
      const UintVec units = row(key, d) | row(key + 1, d) << 16;
      std::memcpy(packed + key / 2 * dim + d, &units, sizeof(units));
    }
}

// Weights of a row of kWidth lanes each for kPerUnit neighbouring keys, as units.
EDLM_INLINE UintVec pack_weights(const Vec (&w)[1], const float*) { return bit_cast<UintVec>(w[0]); }

EDLM_INLINE UintVec pack_weights(const Vec (&w)[2], const bf16*) {
  return widen(round_bf16(w[0])) | widen(round_bf16(w[1])) << 16;
}

// Offset in the caches of a kv head's key at a position.
std::int64_t cache_offset(const BlockAttentionParams& p, std::int64_t slot, std::int64_t kv_head,
                          std::int64_t position) {
  const PagedCache& cache = p.cache;
  const std::int64_t page = cache.page_table[slot * cache.max_pages + position / cache.page_size];
  return ((page * p.kv_heads + kv_head) * cache.page_size + position % cache.page_size) * p.head_dim;
}

// Fetches the keys and values of a group.
template <class T>
void prefetch(const BlockAttentionParams& p, std::int64_t offset) {
  const auto *k = static_cast<const T*>(p.cache.k_cache) + offset, *v = static_cast<const T*>(p.cache.v_cache) + offset;
  for (std::int64_t i = 0; i < kKeyGroup * p.head_dim; i += 64 / sizeof(T)) {
    __builtin_prefetch(k + i, 0, 2);
    __builtin_prefetch(v + i, 0, 2);
  }
}

// One step of the online softmax (Milakov, Gimelshein, arXiv:1805.02867) for kWidth rows, the lanes: scores
// [keys, kRowTile] of the keys from `first` on become weights; `keep` is what the earlier output is worth now.
template <class T>
EDLM_INLINE Vec softmax_lanes(const float* scores, std::int64_t first, std::int64_t keys, bool mask, IntVec limit,
                              float scale, std::uint32_t* weights, float* max_at, float* sum_at) {
  const auto score = [&](std::int64_t key) {
    const Vec s = load(scores + key * kRowTile);
    return mask ? (limit > static_cast<std::int32_t>(first + key) ? s : splat(-INFINITY)) : s;
  };
  const Vec old_max = load(max_at);
  Vec largest = splat(-INFINITY);
  for (std::int64_t key = 0; key < keys; ++key) largest = max(largest, score(key));
  const Vec new_max = max(largest * scale, old_max);
  Vec total{};
  for (std::int64_t key = 0; key < keys; key += kPerUnit<T>) {
    Vec w[kPerUnit<T>] = {};
    for (int i = 0; i < kPerUnit<T>; ++i)
      if (key + i < keys) total += w[i] = exp(fma(score(key + i), splat(scale), -new_max));
    const UintVec units = pack_weights(w, static_cast<const T*>(nullptr));
    std::memcpy(weights + key / kPerUnit<T> * kRowTile, &units, sizeof(units));
  }
  const Vec keep = exp(old_max - new_max);
  store(max_at, new_max);
  store(sum_at, fma(load(sum_at), keep, total));
  return keep;
}

template <class T>
void softmax(const BlockAttentionParams& p, const Workspace<T>& ws, std::int64_t rows, std::int64_t first,
             std::int64_t keys) {
  for (std::int64_t row = 0; row < rows; row += kWidth) {
    IntVec limit;
    std::memcpy(&limit, ws.limit + row, sizeof(limit));
    const bool mask = any(limit < static_cast<std::int32_t>(first + keys));
    const Vec keep = softmax_lanes<T>(ws.scores + row, first, keys, mask, limit, p.scale, ws.weights + row,
                                      ws.max + row, ws.sum + row);
    if (!any(keep != splat(1.0f))) continue;
    for (std::int64_t lane = 0; lane < kWidth; ++lane) {
      float* out = ws.out + (row + lane) * p.head_dim;
      for (std::int64_t d = 0; d < p.head_dim; d += kWidth) store(out + d, load(out + d) * keep[lane]);
    }
  }
}

// Where a tile's packed rows lie, and what they see.
struct Rows {
  const BlockAttentionParams& p;
  const AttentionTile& tile;
  const QueryBlock& block = p.blocks[tile.block];
  std::int64_t group = p.heads / p.kv_heads;

  std::int64_t offset(std::int64_t i) const { // in q and out
    const std::int64_t packed = tile.first + i;
    return ((block.row + packed / group) * p.heads + tile.kv_head * group + packed % group) * p.head_dim;
  }

  std::int64_t limit(std::int64_t i) const {
    return block.causal ? block.kv_len - (block.length - 1 - (tile.first + i) / group) : block.kv_len;
  }
};

// Packs the queries and empties the state. Up to a multiple of 16 there may be rows that do not exist: their q is 0.
template <class T>
void begin_tile(const Rows& rows, std::int64_t padded, const Workspace<T>& ws) {
  const std::int64_t dim = rows.p.head_dim, count = rows.tile.count;
  std::memset(ws.q, 0, kRowTile * dim * sizeof(T));
  std::memset(ws.out, 0, padded * dim * 4);
  for (std::int64_t i = 0; i < padded; ++i) {
    ws.limit[i] = static_cast<std::int32_t>(rows.limit(std::min(i, count - 1)));
    ws.max[i] = -INFINITY;
    ws.sum[i] = 0;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const T* q = static_cast<const T*>(rows.p.q) + rows.offset(i);
    for (std::int64_t u = 0; u < dim / kPerUnit<T>; ++u) std::memcpy(ws.q + u * kRowTile + i, q + u * kPerUnit<T>, 4);
  }
}

template <class T>
void run_tile(const BlockAttentionParams& p, const AttentionTile& tile, const Workspace<T>& ws) {
  const Rows rows{p, tile};
  const std::int64_t dim = p.head_dim, units = dim / kPerUnit<T>, padded = ceil_div(tile.count, 16) * 16;
  begin_tile(rows, padded, ws);
  const std::int64_t limit = rows.limit(tile.count - 1);
  const std::int64_t end = tile.splits > 1 ? std::min(limit, tile.first_key + kKeySplit) : limit;
  for (std::int64_t first = tile.first_key; first < end; first += kKeyTile) {
    const std::int64_t keys = std::min(kKeyTile, end - first);
    for (std::int64_t key = 0; key < keys; key += kKeyGroup) {
      const std::int64_t position = first + key, n = std::min(kKeyGroup, keys - key);
      const std::int64_t at = cache_offset(p, rows.block.slot, tile.kv_head, position);
      const auto* k = reinterpret_cast<const std::uint32_t*>(static_cast<const T*>(p.cache.k_cache) + at);
      if (position + kKeyTile < end)
        prefetch<T>(p, cache_offset(p, rows.block.slot, tile.kv_head, position + kKeyTile));
      gemm<T>({k, units, 1}, ws.q, kRowTile, ws.scores + key * kRowTile, kRowTile, n, padded, units, false);
      pack_values(static_cast<const T*>(p.cache.v_cache) + at, dim, n, ws.v + key / kPerUnit<T> * dim);
    }
    softmax(p, ws, padded, first, keys);
    gemm<T>({ws.weights, 1, kRowTile}, ws.v, dim, ws.out, dim, tile.count, dim, ceil_div(keys, kPerUnit<T>), true);
  }
  for (std::int64_t i = 0; i < tile.count; ++i) {
    if (tile.splits > 1) {
      float* partial = p.partial + (tile.partial + i) * (dim + 2);
      std::memcpy(partial, ws.out + i * dim, dim * 4);
      partial[dim] = ws.max[i];
      partial[dim + 1] = ws.sum[i];
      continue;
    }
    T* out = static_cast<T*>(p.out) + rows.offset(i);
    for (std::int64_t d = 0; d < dim; d += kWidth) store(out + d, load(ws.out + i * dim + d) / ws.sum[i]);
  }
}

// The parts of row i, in their order, each worth e^(its maximum - the largest one).
template <class T>
void merge_row(const BlockAttentionParams& p, const AttentionTile& tile, std::int64_t i) {
  const Rows rows{p, tile};
  const std::int64_t width = p.head_dim + 2, step = tile.count * width;
  const float* part = p.partial + (tile.partial + i) * width;
  float largest = -INFINITY, sum = 0;
  for (std::int64_t s = 0; s < tile.splits; ++s) largest = std::max(largest, part[s * step + p.head_dim]);
  const auto worth = [&](std::int64_t s) { return std::exp(part[s * step + p.head_dim] - largest); };
  for (std::int64_t s = 0; s < tile.splits; ++s) sum += worth(s) * part[s * step + p.head_dim + 1];
  T* out = static_cast<T*>(p.out) + rows.offset(i);
  for (std::int64_t d = 0; d < p.head_dim; d += kWidth) {
    Vec total{};
    for (std::int64_t s = 0; s < tile.splits; ++s) total = fma(load(part + s * step + d), splat(worth(s)), total);
    store(out + d, total / sum);
  }
}

template <class T>
void tiles(const BlockAttentionParams& p, std::int64_t begin, std::int64_t end, void* memory) {
  const Workspace<T> ws(memory, p.head_dim);
  for (std::int64_t i = begin; i < end; ++i) run_tile(p, p.tiles[i], ws);
}

} // namespace

std::int64_t block_attention_workspace(const BlockAttentionParams& p) {
  return p.dtype == DType::f32 ? Workspace<float>::bytes(p.head_dim) : Workspace<bf16>::bytes(p.head_dim);
}

void block_attention(const BlockAttentionParams& p, std::int64_t begin, std::int64_t end, void* workspace) {
  p.dtype == DType::f32 ? tiles<float>(p, begin, end, workspace) : tiles<bf16>(p, begin, end, workspace);
}

void block_attention_merge(const BlockAttentionParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) {
    const AttentionTile& tile = p.tiles[t];
    if (tile.splits == 1 || tile.first_key > 0) continue;
    for (std::int64_t i = 0; i < tile.count; ++i)
      p.dtype == DType::f32 ? merge_row<float>(p, tile, i) : merge_row<bf16>(p, tile, i);
  }
}

} // namespace edlm::cpu::EDLM_ISA
