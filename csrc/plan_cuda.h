// Pure functions of shapes for CUDA: tiles, splits, shared memory.
#pragma once

#include "params.h"
#include "plan.h"

namespace edlm {

// RMS norm: 16-byte vectors of a row that one thread holds at most, and threads of a block; above 1024 the row is too
// long.
constexpr int kHeldVectors = 4;

constexpr std::int64_t rms_norm_threads(std::int64_t hidden, std::int64_t vector) {
  const std::int64_t vectors = ceil_div(hidden, vector);
  const std::int64_t each = std::clamp<std::int64_t>(ceil_div(vectors, 512), 1, kHeldVectors);
  return ceil_div(ceil_div(vectors, each), 32) * 32;
}

// Attention: what one launch looks like. A block of threads has `row_tile` packed rows of one kv head and one of
// `splits` ranges of the keys, in tiles, of which `stages` are in shared memory.
struct AttentionPlan {
  std::int32_t row_tile, splits, stages;
  std::int64_t tiles; // of rows at most, whatever the lengths of the query blocks are
  std::int64_t shared_bytes;
};

constexpr std::int64_t kMaxGridZ = 65535; // tiles of a launch
constexpr std::int32_t kMaxSplits = 32;
constexpr std::int32_t kMinSplitKeys = 256;

constexpr std::int32_t cuda_key_tile(std::int64_t element_size) { return element_size == 4 ? 32 : 64; }

// Keys of one split, so that a sequence's `keys` need at most `splits` of them: a multiple of every key tile.
constexpr std::int32_t split_keys(std::int32_t keys, std::int32_t splits) {
  const std::int32_t fair = (keys + splits - 1) / splits;
  return ((fair > kMinSplitKeys ? fair : kMinSplitKeys) + 63) / 64 * 64;
}

// Work for at least 80 % of the multiprocessors is not split. Else the fewest splits whose last wave wastes at most 15
// % more than the best number does (the rule of FlashAttention-3).
constexpr std::int32_t attention_splits(std::int64_t max_keys, std::int64_t blocks, std::int64_t multiprocessors) {
  const std::int64_t most = std::clamp<std::int64_t>(ceil_div(max_keys, kMinSplitKeys), 1, kMaxSplits);
  if (blocks * 10 >= multiprocessors * 8 || most == 1) return 1;
  const auto efficiency = [=](std::int64_t splits) {
    const double waves = static_cast<double>(blocks * splits) / static_cast<double>(multiprocessors);
    return waves / static_cast<double>(ceil_div(blocks * splits, multiprocessors));
  };
  double best = 0;
  for (std::int64_t splits = 1; splits <= most; ++splits) best = std::max(best, efficiency(splits));
  std::int64_t splits = 1;
  while (efficiency(splits) < 0.85 * best) ++splits;
  return static_cast<std::int32_t>(splits);
}

constexpr std::int64_t attention_shared_bytes(std::int64_t element_size, std::int64_t head_dim, std::int64_t row_tile,
                                              std::int64_t stages) {
  const std::int64_t keys = cuda_key_tile(element_size), weights = element_size == 4 ? row_tile * keys * 4 : 0;
  return (row_tile + stages * 2 * keys) * head_dim * element_size + weights;
}

// rows: of q; packed rows per kv head are `group` times that.
constexpr AttentionPlan attention_plan(std::int64_t element_size, std::int64_t head_dim, std::int64_t rows,
                                       std::int64_t group, std::int64_t kv_heads, std::int64_t num_blocks,
                                       std::int64_t max_keys, std::int64_t multiprocessors,
                                       std::int64_t shared_limit) {
  AttentionPlan plan{};
  const std::int64_t packed = rows * group, mean = ceil_div(packed, std::max<std::int64_t>(1, num_blocks));
  plan.row_tile = element_size == 4 ? 32 : mean <= 16 ? 16 : mean <= 64 ? 64 : 128;
  plan.tiles = packed / plan.row_tile + num_blocks;
  const std::int64_t busy = std::max(num_blocks, ceil_div(packed, plan.row_tile));
  plan.splits = attention_splits(max_keys, busy * kv_heads, multiprocessors);
  plan.stages = attention_shared_bytes(element_size, head_dim, plan.row_tile, 3) <= shared_limit ? 3 : 2;
  plan.shared_bytes = attention_shared_bytes(element_size, head_dim, plan.row_tile, plan.stages);
  return plan;
}

// Row statistics: parts of the vocabulary, each a block's work: some thousand ids. They do not depend on the number of
// rows, so a row's sums do not either.
constexpr std::int64_t cuda_vocab_parts(std::int64_t vocab) { return std::clamp<std::int64_t>(vocab / 4096, 1, 64); }

// Rows whose logits lie in memory at a time: 300 MB of floats for a vocabulary of 150 thousand.
constexpr std::int64_t kLogitRows = 512;

// Ids of a part, a multiple of 8.
constexpr std::int64_t cuda_part_ids(std::int64_t vocab, std::int64_t parts) {
  return ceil_div(ceil_div(vocab, parts), 8) * 8;
}

} // namespace edlm
