#include "../plan.h"
#include "gemm_tile.h"
#include "kernels.h"
#include "vec.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

// A thread's scratch: operands of the two matrix products of one tile, and the state of the online softmax.
template <class T>
struct Workspace {
  T* q;                // [kRowTile, dim]
  std::uint32_t* k;    // units [dim / kPerUnit, kKeyTile]
  std::uint32_t* v;    // units [kKeyTile / kPerUnit, dim]
  float* scores;       // [kRowTile, kKeyTile]
  T* weights;          // [kRowTile, kKeyTile]: e^(score - max)
  float* out;          // [kRowTile, dim], not yet divided by sum
  float *max, *sum;    // [kRowTile]

  static std::int64_t bytes(std::int64_t dim) {
    return kRowTile * (dim * sizeof(T) + kKeyTile * (4 + sizeof(T)) + dim * 4 + 8) + 2 * kKeyTile * dim * sizeof(T);
  }

  Workspace(void* memory, std::int64_t dim) {
    auto* at = static_cast<char*>(memory);
    auto take = [&](auto*& field, std::int64_t bytes) {
      field = reinterpret_cast<std::remove_reference_t<decltype(field)>>(at);
      at += bytes;
    };
    take(out, kRowTile * dim * 4);
    take(scores, kRowTile * kKeyTile * 4);
    take(q, kRowTile * dim * sizeof(T));
    take(k, kKeyTile * dim * sizeof(T));
    take(v, kKeyTile * dim * sizeof(T));
    take(weights, kRowTile * kKeyTile * sizeof(T));
    take(max, kRowTile * 4);
    take(sum, kRowTile * 4);
  }
};

// k [kKeyGroup, dim] -> units [dim / kPerUnit, kKeyTile], the columns from `column` on.
template <class T>
void pack_keys(const T* k, std::int64_t dim, std::uint32_t* packed) {
  const std::int64_t units = dim / kPerUnit<T>;
  for (std::int64_t key = 0; key < kKeyGroup; ++key)
    for (std::int64_t u = 0; u < units; ++u)
      std::memcpy(packed + u * kKeyTile + key, k + (key * units + u) * kPerUnit<T>, 4);
}

// v [kKeyGroup, dim] -> units [kKeyGroup / kPerUnit, dim]. Keys from `valid` on count as zeros: what lies there is
// unwritten memory, and 0 * NaN would reach the sums.
void pack_values(const float* v, std::int64_t dim, std::int64_t valid, std::uint32_t* packed) {
  std::memcpy(packed, v, valid * dim * 4);
  std::memset(packed + valid * dim, 0, (kKeyGroup - valid) * dim * 4);
}

void pack_values(const bf16* v, std::int64_t dim, std::int64_t valid, std::uint32_t* packed) {
  for (std::int64_t key = 0; key < kKeyGroup; key += 2) {
    const bf16 *even = v + key * dim, *odd = even + dim;
    std::uint32_t* units = packed + key / 2 * dim;
    for (std::int64_t d = 0; d < dim; ++d) {
      const std::uint32_t low = key < valid ? even[d].bits : 0, high = key + 1 < valid ? odd[d].bits : 0;
      units[d] = low | high << 16;
    }
  }
}

// Packs the keys [first, first + kKeyTile) of a sequence as far as they lie before `end`; their number, rounded up.
template <class T>
std::int64_t pack_tile(const BlockAttentionParams& p, std::int64_t slot, std::int64_t kv_head, std::int64_t first,
                       std::int64_t end, Workspace<T>& ws) {
  const PagedCache& cache = p.cache;
  std::int64_t key = 0;
  for (; key < kKeyTile && first + key < end; key += kKeyGroup) {
    const std::int64_t position = first + key;
    const std::int64_t page = cache.page_table[slot * cache.max_pages + position / cache.page_size];
    const std::int64_t at =
        ((page * p.kv_heads + kv_head) * cache.page_size + position % cache.page_size) * p.head_dim;
    pack_keys(static_cast<const T*>(cache.k_cache) + at, p.head_dim, ws.k + key);
    pack_values(static_cast<const T*>(cache.v_cache) + at, p.head_dim, std::min(kKeyGroup, end - position),
                ws.v + key / kPerUnit<T> * p.head_dim);
  }
  return key;
}

// One step of the online softmax (Milakov, Gimelshein, arXiv:1805.02867) for one row: scores [columns], of which the
// first `visible` count, become weights; the row's output so far is rescaled to the new maximum.
template <class T>
void softmax_row(float* scores, std::int64_t columns, std::int64_t visible, float scale, T* weights, float* max,
                 float* sum, float* out, std::int64_t dim) {
  for (std::int64_t j = std::max<std::int64_t>(visible, 0); j < columns; ++j) scores[j] = -INFINITY;
  Vec largest = splat(-INFINITY);
  for (std::int64_t j = 0; j < columns; j += kWidth) largest = edlm::cpu::EDLM_ISA::max(largest, load(scores + j));
  const float new_max = std::fmax(*max, reduce_max(largest) * scale);
  Vec total{};
  for (std::int64_t j = 0; j < columns; j += kWidth) {
    const Vec w = exp(load(scores + j) * scale - new_max);
    total += w;
    store(weights + j, w);
  }
  const float keep = std::exp(*max - new_max);
  *sum = *sum * keep + reduce_add(total);
  *max = new_max;
  if (keep != 1.0f)
    for (std::int64_t d = 0; d < dim; d += kWidth) store(out + d, load(out + d) * keep);
}

template <class T>
void tile(const BlockAttentionParams& p, const AttentionTile& item, Workspace<T>& ws) {
  const QueryBlock& block = p.blocks[item.block];
  const std::int64_t dim = p.head_dim, group = p.heads / p.kv_heads;
  auto offset = [&](std::int64_t i) { // of the packed row i in q and out
    const std::int64_t packed = item.first + i;
    return ((block.row + packed / group) * p.heads + item.kv_head * group + packed % group) * dim;
  };
  auto limit = [&](std::int64_t i) { // keys that the packed row i sees
    return block.causal ? block.kv_len - (block.length - 1 - (item.first + i) / group) : block.kv_len;
  };
  for (std::int64_t i = 0; i < item.count; ++i) {
    std::memcpy(ws.q + i * dim, static_cast<const T*>(p.q) + offset(i), dim * sizeof(T));
    ws.max[i] = -INFINITY;
    ws.sum[i] = 0;
  }
  std::memset(ws.out, 0, item.count * dim * 4);
  const std::int64_t end = limit(item.count - 1);
  for (std::int64_t first = 0; first < end; first += kKeyTile) {
    const std::int64_t columns = pack_tile(p, block.slot, item.kv_head, first, end, ws);
    std::memset(ws.scores, 0, item.count * kKeyTile * 4);
    gemm(ws.q, dim, ws.k, kKeyTile, ws.scores, kKeyTile, item.count, columns, dim / kPerUnit<T>);
    for (std::int64_t i = 0; i < item.count; ++i)
      softmax_row(ws.scores + i * kKeyTile, columns, limit(i) - first, p.scale, ws.weights + i * kKeyTile, ws.max + i,
                  ws.sum + i, ws.out + i * dim, dim);
    gemm(ws.weights, kKeyTile, ws.v, dim, ws.out, dim, item.count, dim, columns / kPerUnit<T>);
  }
  for (std::int64_t i = 0; i < item.count; ++i) {
    T* out = static_cast<T*>(p.out) + offset(i);
    for (std::int64_t d = 0; d < dim; d += kWidth) store(out + d, load(ws.out + i * dim + d) / ws.sum[i]);
  }
}

template <class T>
void tiles(const BlockAttentionParams& p, std::int64_t begin, std::int64_t end, void* memory) {
  Workspace<T> ws(memory, p.head_dim);
  for (std::int64_t i = begin; i < end; ++i) tile(p, p.tiles[i], ws);
}

} // namespace

std::int64_t block_attention_workspace(const BlockAttentionParams& p) {
  return p.dtype == DType::f32 ? Workspace<float>::bytes(p.head_dim) : Workspace<bf16>::bytes(p.head_dim);
}

void block_attention(const BlockAttentionParams& p, std::int64_t begin, std::int64_t end, void* workspace) {
  p.dtype == DType::f32 ? tiles<float>(p, begin, end, workspace) : tiles<bf16>(p, begin, end, workspace);
}

} // namespace edlm::cpu::EDLM_ISA
