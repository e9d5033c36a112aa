// The second half of row_stats: merge the parts of the vocabulary, filter and sample where asked, write the results.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "../random.h"
#include "../stats.h"
#include "dispatch.h"

namespace edlm::cpu {
namespace {

using Ids = std::vector<std::int32_t>;

// Length of the shortest prefix of the ids, sorted by falling logit, that holds top_p of their probability. Sorts only
// as many ids as it needs; sums in fp64.
std::int64_t top_p_prefix(const float* z, Ids& ids, float temperature, float top_p, float largest) {
  const auto before = [z](std::int32_t a, std::int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); };
  const auto weight = [=](std::int32_t id) { return std::exp((static_cast<double>(z[id]) - largest) / temperature); };
  double total = 0, held = 0;
  for (const std::int32_t id : ids) total += weight(id);
  const auto size = static_cast<std::int64_t>(ids.size());
  for (std::int64_t sorted = 0, next = 64; sorted < size; next *= 4) {
    const std::int64_t end = std::min(next, size);
    if (end < size) std::nth_element(ids.begin() + sorted, ids.begin() + end, ids.end(), before);
    std::sort(ids.begin() + sorted, ids.begin() + end, before);
    for (; sorted < end; ++sorted) {
      held += weight(ids[sorted]);
      if (held >= top_p * total) return sorted + 1;
    }
  }
  return size;
}

// The ids that top-k, then top-p leave.
Ids kept_ids(const RowStatsParams& p, std::int64_t slot, const float* z, float largest) {
  Ids ids(p.vocab);
  std::iota(ids.begin(), ids.end(), 0);
  const std::int32_t top_k = p.top_k[slot];
  if (top_k > 0 && top_k < p.vocab) {
    std::nth_element(ids.begin(), ids.begin() + top_k, ids.end(),
                     [z](std::int32_t a, std::int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); });
    ids.resize(top_k);
  }
  if (p.top_p[slot] < 1) ids.resize(top_p_prefix(z, ids, p.temperature[slot], p.top_p[slot], largest));
  return ids;
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
