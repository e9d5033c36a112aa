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

// Share of the machine that so many equal blocks of threads keep busy until the last one ends.
constexpr double wave_efficiency(std::int64_t blocks, std::int64_t multiprocessors) {
  return static_cast<double>(blocks) / static_cast<double>(ceil_div(blocks, multiprocessors) * multiprocessors);
}

// Work for at least 80 % of the multiprocessors is not split. Else the fewest splits whose last wave wastes at most 15
// % more than the best number does (the rule of FlashAttention-3).
constexpr std::int32_t attention_splits(std::int64_t max_keys, std::int64_t blocks, std::int64_t multiprocessors) {
  const std::int64_t most = std::clamp<std::int64_t>(ceil_div(max_keys, kMinSplitKeys), 1, kMaxSplits);
  if (blocks * 10 >= multiprocessors * 8 || most == 1) return 1;
  const auto efficiency = [=](std::int64_t splits) { return wave_efficiency(blocks * splits, multiprocessors); };
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

// Linear layers. A packed weight: groups of kGroupOutputs outputs (the last one filled up with zeros), in each
// [steps, 4 panels of 16 outputs, 2 halves, 32 lanes, 4] words of four bytes, and for weights of one byte the outputs'
// scales behind them, float [kGroupOutputs]. A step is kStepBytes along the inputs (the last one filled up, too). The
// four words of a lane are its registers of one A fragment of mma() (ptx.cuh), 16 outputs by 32 bytes; but bytes [16 t,
// 16 t + 16) of a step are those of the lanes with lane % 4 == t, in both halves, so that 16 bytes of an input row are
// such a lane's B fragments of both: word w of them meets half w / 2, register w % 2 of B, 2 (w % 2) and the next of A.
constexpr std::int64_t kGroupOutputs = 64;
constexpr std::int64_t kStepBytes = 64;
constexpr std::int64_t kStepWords = kGroupOutputs * kStepBytes / 4;
constexpr std::int32_t kLinearWarps = 8; // of a block of threads: they share the steps
constexpr std::int64_t kMinWarpSteps = 4;
constexpr std::int32_t kMaxLinearSplits = 16;

constexpr std::int64_t linear_groups(std::int64_t outputs) { return ceil_div(outputs, kGroupOutputs); }
constexpr std::int64_t padded_outputs(std::int64_t outputs) { return linear_groups(outputs) * kGroupOutputs; }
constexpr std::int64_t linear_steps(std::int64_t inputs, std::int64_t element_size) {
  return ceil_div(inputs * element_size, kStepBytes);
}
constexpr std::int64_t group_words(std::int64_t inputs, std::int64_t element_size) {
  return linear_steps(inputs, element_size) * kStepWords + (element_size == 1 ? kGroupOutputs : 0);
}

// Blocks of threads that share a group's steps: the fewest that keep 80 % of the machine busy, or 15 % less than the
// best number does. The rows have no say, so a row's sums do not depend on their number.
constexpr std::int32_t linear_splits(std::int64_t groups, std::int64_t steps, std::int64_t multiprocessors) {
  const std::int64_t most = std::clamp<std::int64_t>(steps / (kLinearWarps * kMinWarpSteps), 1, kMaxLinearSplits);
  double best = 0;
  for (std::int64_t splits = 1; splits <= most; ++splits)
    best = std::max(best, wave_efficiency(groups * splits, multiprocessors));
  std::int64_t splits = 1;
  while (wave_efficiency(groups * splits, multiprocessors) < std::min(0.8, 0.85 * best)) ++splits;
  return static_cast<std::int32_t>(splits);
}

// First step of a split; it ends where the next one begins.
constexpr std::int64_t split_begin(std::int64_t split, std::int64_t splits, std::int64_t steps) {
  return steps * split / splits;
}

// Rows of a tile: the tokens on the N side of mma().
constexpr std::int64_t linear_row_tile(std::int64_t rows) { return rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64; }

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
