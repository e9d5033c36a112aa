// Pure functions of shapes: tiles, splits and grain sizes. None depends on the number of threads, so results do not.
#pragma once

#include <algorithm>
#include <cstdint>

namespace edlm {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Below about this many multiply-adds or elements a second thread costs more than it brings.
constexpr std::int64_t kGrain = 1 << 15;

constexpr std::int64_t grain_size(std::int64_t cost_per_item) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, cost_per_item));
}

// Attention: packed query rows of a work item, and keys that it handles at a time (a multiple of kKeyGroup, which
// divides every page size).
constexpr std::int64_t kRowTile = 64;
constexpr std::int64_t kKeyTile = 64;
constexpr std::int64_t kKeyGroup = 16;

// Row statistics: vocabulary rows handled at a time. Their weights (about 256 KiB) stay in the second-level cache
// while all tiles of hidden rows pass. A multiple of 64.
constexpr std::int64_t vocab_chunk(std::int64_t hidden_size, std::int64_t element_size) {
  const std::int64_t fitting = (256 << 10) / (hidden_size * element_size);
  return std::clamp<std::int64_t>(fitting / 64 * 64, 64, 512);
}

// Work items, each some chunks.
constexpr std::int64_t vocab_parts(std::int64_t chunks) {
  return std::min<std::int64_t>(128, chunks);
}

// First chunk of a part; the part's end is the first chunk of the next one.
constexpr std::int64_t part_begin(std::int64_t part, std::int64_t parts, std::int64_t chunks) {
  return part * chunks / parts;
}

} // namespace edlm
