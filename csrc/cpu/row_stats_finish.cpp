// The second half of row_stats: merge the parts of the vocabulary, filter and sample where asked, write the results.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../plan.h"
#include "../random.h"
#include "../stats.h"
#include "dispatch.h"

namespace edlm::cpu {
namespace {

using Ids = std::vector<std::int32_t>;

// Orders ids by falling logit, ties by rising id.
struct Before {
  const float* z;
  bool operator()(std::int32_t a, std::int32_t b) const { return z[a] > z[b] || (z[a] == z[b] && a < b); }
};

// Probabilities of softmax(z / temperature), but for the normaliser; sums of them in fp64.
struct Weight {
  const float* z;
  float largest, temperature;
  double operator()(std::int32_t id) const { return std::exp((z[id] - largest) / temperature); }
};

// Cuts the ids to the shortest prefix, in falling order, whose weights sum to `wanted`, and says whether there is one.
// Sorts only as many ids as it needs.
bool cut_to_sum(Ids& ids, const Weight& weight, double wanted) {
  const auto size = static_cast<std::int64_t>(ids.size());
  double held = 0;
  for (std::int64_t sorted = 0, next = 64; sorted < size; next *= 4) {
    const std::int64_t end = std::min(next, size);
    if (end < size) std::nth_element(ids.begin() + sorted, ids.begin() + end, ids.end(), Before{weight.z});
    std::sort(ids.begin() + sorted, ids.begin() + end, Before{weight.z});
    for (; sorted < end; ++sorted) {
      held += weight(ids[sorted]);
      if (held >= wanted) {
        ids.resize(sorted + 1);
        return true;
      }
    }
  }
  return false;
}

// The ids that top-k, then top-p leave. Looks first among logits near the largest, where they are as a rule.
Ids kept_ids(const RowStatsParams& p, std::int64_t slot, const float* z, float largest) {
  const SlotFields& settings = slot_fields(p.state, slot);
  const Weight weight{z, largest, settings.temperature};
  const std::int64_t top_k = settings.top_k;
  const bool by_k = top_k > 0 && top_k < p.vocab, by_p = settings.top_p < 1;
  const double total = by_k ? 0 : kernels().softmax_sum(z, padded_ids(p.vocab), largest, weight.temperature);
  for (float width = 8 * weight.temperature;; width *= 8) {
    Ids ids;
    for (std::int32_t id = 0; id < p.vocab; ++id)
      if (z[id] >= largest - width) ids.push_back(id);
    const bool all = width > 1e6f * weight.temperature || static_cast<std::int64_t>(ids.size()) == p.vocab;
    if (by_k) {
      if (static_cast<std::int64_t>(ids.size()) < top_k && !all) continue;
      if (static_cast<std::int64_t>(ids.size()) > top_k) {
        std::nth_element(ids.begin(), ids.begin() + top_k, ids.end(), Before{z});
        ids.resize(top_k);
      }
      if (by_p) {
        double kept = 0;
        for (const std::int32_t id : ids) kept += weight(id);
        cut_to_sum(ids, weight, settings.top_p * kept);
      }
      return ids;
    }
    if (cut_to_sum(ids, weight, settings.top_p * total) || all) return ids;
  }
}

void sample_filtered(const RowStatsParams& p, std::int64_t row, LogitStats& stats) {
  const std::int64_t slot = p.slots[row];
  const SlotFields& settings = slot_fields(p.state, slot);
  const float* z = p.logits[row];
  for (const std::int32_t id : kept_ids(p, slot, z, stats.z1)) {
    const PhiloxBlock random = philox_ids(id / 4, settings.seed, p.positions[row], settings.step);
    const float value = z[id] / settings.temperature + gumbel(random.word[id % 4]);
    if (value > stats.best || (value == stats.best && id < stats.id_best)) {
      stats.best = value;
      stats.z_best = z[id];
      stats.id_best = id;
    }
  }
}

} // namespace

void row_stats_finish(const RowStatsParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    if (p.slots[row] < 0) continue;
    LogitStats stats = p.partial[row * p.parts];
    for (std::int64_t part = 1; part < p.parts; ++part) merge_stats(stats, p.partial[row * p.parts + part]);
    const bool usable = !stats.bad && stats.id1 >= 0;
    if (usable && p.logits[row]) sample_filtered(p, row, stats);
    if (!(slot_fields(p.state, p.slots[row]).temperature > 0)) {
      stats.z_best = stats.z1;
      stats.id_best = stats.id1;
    }
    write_row(stats, p.ids + row * IdColumn::count, p.stats + row * StatColumn::count);
  }
}

} // namespace edlm::cpu
