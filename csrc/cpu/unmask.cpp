#include <algorithm>
#include <cmath>

#include "dispatch.h"

namespace edlm::cpu {
namespace {

// How many of `left` masked positions the fixed schedule commits: floor(m / n), in the first m mod n steps one more.
std::int64_t scheduled(const UnmaskParams& p, std::int64_t s, std::int64_t left) {
  const std::int64_t m = p.block_length[s], n = std::max(1, p.steps_per_block[s]);
  return std::clamp<std::int64_t>(m / n + (p.step[s] < m % n), 1, left);
}

std::int64_t above_threshold(const UnmaskParams& p, std::int64_t s, const float* stats, std::int64_t left) {
  if (p.steps_per_block[s] > 0 && p.step[s] >= p.steps_per_block[s] - 1) return left;
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < left; ++row) count += stats[row * 5 + 4] >= p.threshold[s];
  return std::max<std::int64_t>(1, count);
}

// Rows with a higher confidence, or the same and a lower position.
std::int64_t rank(const float* stats, std::int64_t row, std::int64_t left) {
  const float own = stats[row * 5 + 4];
  std::int64_t before = 0;
  for (std::int64_t other = 0; other < left; ++other) {
    const float confidence = stats[other * 5 + 4];
    before += confidence > own || (confidence == own && other < row);
  }
  return before;
}

// Both rules commit the k most confident positions; they differ in k.
void unmask_slot(const UnmaskParams& p, std::int64_t s) {
  const std::int64_t left = p.num_masked[s], step = p.step[s];
  const std::int32_t* ids = p.ids + p.first_row[s] * 2;
  const float* stats = p.stats + p.first_row[s] * 5;
  for (std::int64_t row = 0; row < left; ++row)
    if (ids[row * 2 + 1] < 0 || std::isnan(stats[row * 5 + 4])) {
      p.status[s] = -1;
      return;
    }
  std::int64_t k = 0;
  if (left > 0) k = std::isnan(p.threshold[s]) ? scheduled(p, s, left) : above_threshold(p, s, stats, left);
  std::int64_t row = 0;
  for (std::int64_t at = s * p.max_block; row < left; ++at) {
    if (!p.masked[at]) continue;
    if (rank(stats, row, left) < k) {
      p.tokens[at] = ids[row * 2 + 1];
      p.confidence[at] = stats[row * 5 + 4];
      p.commit_step[at] = static_cast<std::int32_t>(step);
      p.masked[at] = 0;
    }
    ++row;
  }
  p.num_masked[s] = static_cast<std::int32_t>(left - k);
  p.step[s] = static_cast<std::int32_t>(step + 1);
  p.status[s] = k == left;
}

} // namespace

void unmask(const UnmaskParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t s = begin; s < end; ++s)
    if (p.first_row[s] >= 0) unmask_slot(p, s);
}

} // namespace edlm::cpu
