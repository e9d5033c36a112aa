// Pure functions of shapes: tiles, splits and grain sizes. None depends on the number of threads, so results do not.
#pragma once

#include <algorithm>
#include <cstdint>

namespace edlm {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b > 0 ? 1 : 0); }

// Work of an item is counted in elements read or written; a core does some kMacsPerElement multiply-adds of a matrix
// product in that time. Below about kGrain elements (some 10 microseconds) a second thread costs more than it brings.
constexpr std::int64_t kMacsPerElement = 32;
constexpr std::int64_t kGrain = 1 << 15;

constexpr std::int64_t grain_size(std::int64_t cost_per_item) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, cost_per_item));
}

// Linear layers: outputs of a panel of packed weights; rows whose sums are held at a time; units of four bytes along the
// inputs that rows and panel stay in the caches for.
constexpr std::int64_t kPanel = 32;
constexpr std::int64_t kLinearRows = 64;
constexpr std::int64_t kLinearUnits = 512;

// Attention: packed query rows of a work item, and keys that it handles at a time (a multiple of kKeyGroup, which
// divides every page size).
constexpr std::int64_t kRowTile = 64;
constexpr std::int64_t kKeyTile = 128;
constexpr std::int64_t kKeyGroup = 16;

// Keys of a work item at most, a multiple of kKeyTile. Fewer heads than threads must not leave threads idle behind a long
// prefix. A block of many tiles of rows keeps them busy, and its partial results would take gigabytes; so do rows that
// see different keys (prompts).
constexpr std::int64_t kKeySplit = 2048;
constexpr std::int64_t kManyTiles = 256;

constexpr std::int64_t key_splits(std::int64_t keys, bool same_for_all_rows, std::int64_t tiles) {
  return same_for_all_rows && tiles < kManyTiles ? std::max<std::int64_t>(1, ceil_div(keys, kKeySplit)) : 1;
}

// Row statistics: hidden rows and ids whose logits are held at a time, and ids that are sampled together.
constexpr std::int64_t kStatsRows = 32;
constexpr std::int64_t kStatsIds = 512;
constexpr std::int64_t kSampleIds = 64;

// Ids are padded to whole samples, with logits of -inf.
constexpr std::int64_t padded_ids(std::int64_t ids) { return ceil_div(ids, kSampleIds) * kSampleIds; }

// Weight rows (about 128 KiB) that stay in the second-level cache beside those that are fetched for the next turn.
constexpr std::int64_t weight_chunk(std::int64_t hidden_size, std::int64_t element_size) {
  return std::clamp<std::int64_t>((128 << 10) / (hidden_size * element_size), 24, kStatsIds) / 24 * 24;
}

// Work items of a vocabulary: at most 128, each of whole groups of kStatsIds.
constexpr std::int64_t vocab_parts(std::int64_t vocab) {
  return std::min<std::int64_t>(128, ceil_div(vocab, kStatsIds));
}

// First id of a part; the part ends where the next begins.
constexpr std::int64_t part_begin(std::int64_t part, std::int64_t parts, std::int64_t vocab) {
  return std::min(vocab, part * ceil_div(vocab, kStatsIds) / parts * kStatsIds);
}

} // namespace edlm
