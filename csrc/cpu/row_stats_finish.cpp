// The second half of row_stats: merge the parts of the vocabulary, filter and sample where asked, write the results.
#include <algorithm>
#include <cmath>
#include <limits>
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
  const Weight weight{z, largest, p.temperature[slot]};
  const std::int64_t top_k = p.top_k[slot];
  const bool by_k = top_k > 0 && top_k < p.vocab, by_p = p.top_p[slot] < 1;
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
        cut_to_sum(ids, weight, p.top_p[slot] * kept);
      }
      return ids;
    }
    if (cut_to_sum(ids, weight, p.top_p[slot] * total) || all) return ids;
  }
}

void sample_filtered(const RowStatsParams& p, std::int64_t row, LogitStats& stats) {
  const std::int64_t slot = p.slots[row];
  const float* z = p.logits[row];
  for (const std::int32_t id : kept_ids(p, slot, z, stats.z1)) {
    const PhiloxBlock random = philox_ids(id / 4, p.seed[slot], p.positions[row], p.step[slot]);
    const float value = z[id] / p.temperature[slot] + gumbel(random.word[id % 4]);
    if (value > stats.best || (value == stats.best && id < stats.id_best)) {
      stats.best = value;
      stats.z_best = z[id];
      stats.id_best = id;
    }
  }
}

void write_row(const LogitStats& stats, std::int32_t* ids, float* out) {
  const float log_sum = std::log(stats.sum);
  ids[0] = stats.id1;
  ids[1] = stats.id_best;
  out[0] = 1.0f / stats.sum;
  out[1] = std::exp(stats.z2 - stats.z1) / stats.sum;
  out[2] = log_sum - stats.weighted / stats.sum;
  out[3] = stats.z1 + log_sum;
  out[4] = std::exp(stats.z_best - stats.z1) / stats.sum;
}

} // namespace

void row_stats_finish(const RowStatsParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    if (p.slots[row] < 0) continue;
    LogitStats stats = p.partial[row * p.parts];
    for (std::int64_t part = 1; part < p.parts; ++part) merge_stats(stats, p.partial[row * p.parts + part]);
    std::int32_t* ids = p.ids + row * 2;
    float* out = p.stats + row * 5;
    if (stats.bad || stats.id1 < 0) {
      std::fill(ids, ids + 2, -1);
      std::fill(out, out + 5, std::numeric_limits<float>::quiet_NaN());
      continue;
    }
    if (p.logits[row]) sample_filtered(p, row, stats);
    if (!(p.temperature[p.slots[row]] > 0)) {
      stats.z_best = stats.z1;
      stats.id_best = stats.id1;
    }
    write_row(stats, ids, out);
  }
}

} // namespace edlm::cpu
