// The commit rules: which of a block's candidates (open positions with statistics) a denoising step commits. Every rule
// orders them by a key, falling, ties by position, and commits a prefix of that order: as far as take() says so, and
// the first one always. Sums are in double, so that they do not depend on who adds.
#pragma once

#include "../block_state.h"
#include "../stats.h"

namespace edlm {

// The numbers of the rules, by the names of edlm_engine.policies.
#define EDLM_RULES(RULE) RULE(selected) RULE(threshold) RULE(schedule) RULE(entropy_bound) RULE(factor) RULE(margin) RULE(frechet)
#define EDLM_ENUMERATE(name) name,
enum class Rule : std::int32_t { EDLM_RULES(EDLM_ENUMERATE) count };
#undef EDLM_ENUMERATE

// stats: the candidate's row; position: within the block.
EDLM_DEVICE float rule_key(const Block& block, const float* stats, int position) {
  switch (static_cast<Rule>(block.slot.rule)) {
    case Rule::selected: return stats[StatColumn::p_chosen] + (block.selected[position] ? 2.0f : 0.0f);
    case Rule::entropy_bound: return -stats[StatColumn::entropy];
    case Rule::margin: return stats[StatColumn::p_argmax] - stats[StatColumn::p_second];
    default: return stats[StatColumn::p_chosen];
  }
}

// A candidate that the rule comes to: `rank` others lie before it and have keys that sum to `sum`. to_fill: the
// positions of the block that were not given.
struct Candidate {
  double key, sum;
  int rank, to_fill;
};

// How many of m positions a step of the fixed schedule of n steps commits: floor(m / n), in the first m mod n one more.
// n is held to 1 ... m: no number of a request may divide by zero.
EDLM_DEVICE int scheduled(int positions, float steps, int step) {
  const int most = positions > 1 ? positions : 1;
  const int n = !(steps < static_cast<float>(most)) ? most : steps > 1 ? static_cast<int>(steps) : 1;
  return positions / n + (step < positions % n ? 1 : 0);
}

EDLM_DEVICE bool take(const SlotFields& slot, const Candidate& c) {
  const float* p = slot.rule_parameters;
  switch (static_cast<Rule>(slot.rule)) {
    case Rule::selected: return c.key >= 2;
    case Rule::threshold: // the threshold, and the number of steps the last of which commits whatever is left
      return c.key >= p[0] || static_cast<float>(slot.step + 1) >= p[1];
    case Rule::schedule: return c.rank < scheduled(c.to_fill, p[0], slot.step); // the number of steps
    case Rule::entropy_bound: return -c.sum <= p[0]; // the entropies before it sum to at most gamma
    case Rule::factor: return (c.rank + 2) * (1 - c.key) < p[0]; // n = rank + 1: (n + 1) (1 - c_n) < factor
    case Rule::margin: return c.key >= p[0];
    case Rule::frechet: return c.sum + c.key - c.rank - (1 - c.key) > p[0]; // L_n - U_n > delta
    default: return false;
  }
}

} // namespace edlm
