// Committing tokens to a block from the statistics of its wanted positions.
#pragma once

#include "commit_rule.h"

namespace edlm {

// Memory of a block's lanes, all [max_block].
struct CommitScratch {
  float* key;             // of a candidate
  float* sorted;          // the keys in the rule's order
  std::int32_t* position; // of a candidate in the block
  std::int32_t* row;      // of a candidate among the slot's statistics
  std::int32_t* rank;     // of a candidate in the rule's order
};

constexpr std::int64_t kCommitScratchBytes = 20; // per position

inline EDLM_HOST_DEVICE CommitScratch commit_scratch(void* memory, std::int64_t max_block) {
  auto* floats = static_cast<float*>(memory);
  auto* ints = reinterpret_cast<std::int32_t*>(floats + 2 * max_block);
  return {floats, floats + max_block, ints, ints + max_block, ints + 2 * max_block};
}

// Finds the candidates, ascending; returns how many. bad: whether a wanted position has no usable statistics.
template <class Lanes>
EDLM_DEVICE int find_candidates(const Block& b, const std::int32_t* ids, const float* stats, const CommitScratch& s,
                                const Lanes& lanes, bool& bad) {
  int rows = 0, candidates = 0, spoilt = 0;
  for (int begin = 0; begin < b.slot.block_length; begin += lanes.count()) {
    const int j = begin + lanes.lane();
    const bool inside = j < b.slot.block_length;
    const int wanted = inside && b.wanted[j] ? 1 : 0, candidate = wanted && b.open[j] ? 1 : 0;
    const int row = rows + lanes.sum_before(wanted), at = candidates + lanes.sum_before(candidate);
    if (wanted) {
      const float* own = stats + static_cast<std::int64_t>(row) * StatColumn::count;
      spoilt |= ids[static_cast<std::int64_t>(row) * IdColumn::count + IdColumn::chosen] < 0 ? 1 : 0;
      for (int column = 0; column < StatColumn::count; ++column) spoilt |= own[column] != own[column] ? 1 : 0;
      if (candidate) {
        s.key[at] = rule_key(b, own, j);
        s.position[at] = j;
        s.row[at] = row;
      }
    }
    rows += lanes.sum(wanted);
    candidates += lanes.sum(candidate);
  }
  bad = lanes.sum(spoilt) > 0;
  lanes.sync();
  return candidates;
}

// Candidates with a larger key, or the same and a lower position.
EDLM_DEVICE int rank_of(const float* key, int candidate, int candidates) {
  int before = 0;
  for (int other = 0; other < candidates; ++other)
    before += key[other] > key[candidate] || (key[other] == key[candidate] && other < candidate) ? 1 : 0;
  return before;
}

// How many of the candidates, whose keys are sorted, the slot's rule commits.
EDLM_DEVICE int prefix_length(const SlotFields& slot, const float* sorted, int candidates, int to_fill) {
  Candidate c{0, 0, 0, to_fill};
  for (; c.rank < candidates; ++c.rank) {
    c.key = sorted[c.rank];
    if (!take(slot, c) && c.rank > 0) break;
    c.sum += c.key;
  }
  return c.rank;
}

// ids [rows, IdColumn::count] and stats [rows, StatColumn::count]: of the wanted positions, ascending.
template <class Lanes>
EDLM_DEVICE void unmask(const Block& b, const std::int32_t* ids, const float* stats, const CommitScratch& s,
                        const Lanes& lanes) {
  bool bad = false;
  const int candidates = find_candidates(b, ids, stats, s, lanes, bad);
  int given = 0, open = 0;
  for (int j = lanes.lane(); j < b.slot.block_length; j += lanes.count()) {
    given += b.given[j] ? 1 : 0;
    open += b.open[j] ? 1 : 0;
  }
  const int to_fill = b.slot.block_length - lanes.sum(given), step = b.slot.step;
  open = lanes.sum(open);
  if (bad) {
    if (lanes.lane() == 0) b.slot.status = -1;
    lanes.sync();
    return;
  }
  for (int c = lanes.lane(); c < candidates; c += lanes.count()) {
    s.rank[c] = rank_of(s.key, c, candidates);
    s.sorted[s.rank[c]] = s.key[c];
  }
  lanes.sync();
  const int count = prefix_length(b.slot, s.sorted, candidates, to_fill);
  for (int c = lanes.lane(); c < candidates; c += lanes.count()) {
    if (s.rank[c] >= count) continue;
    const int j = s.position[c];
    const std::int64_t row = s.row[c];
    b.tokens[j] = ids[row * IdColumn::count + IdColumn::chosen];
    b.confidence[j] = stats[row * StatColumn::count + StatColumn::p_chosen];
    b.entropy[j] = stats[row * StatColumn::count + StatColumn::entropy];
    b.commit_step[j] = step;
    b.open[j] = 0;
    if (!b.slot.keep_wanted) b.wanted[j] = 0;
  }
  lanes.sync(); // every lane has read the slot's state
  if (lanes.lane() == 0) {
    b.slot.step = step + 1;
    b.slot.status = count == open ? 1 : 0;
  }
  lanes.sync();
}

} // namespace edlm
