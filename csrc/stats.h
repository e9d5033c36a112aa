// The statistics of a row of logits: merging those of its parts, in the order of the ids, so that ties go to the lowest
// one; and the columns in which a step finds them.
#pragma once

#include <cmath>

#include "params.h"
#include "portable.h"

namespace edlm {

// Columns of `ids` and `stats`, as row_stats writes them. Probabilities are of the raw logits.
#define EDLM_ID_COLUMNS(COLUMN) COLUMN(argmax) COLUMN(chosen)
#define EDLM_STAT_COLUMNS(COLUMN) \
  COLUMN(p_argmax) COLUMN(p_second) COLUMN(entropy) COLUMN(log_sum_exp) COLUMN(p_chosen)

#define EDLM_ENUMERATE(name) name,
struct IdColumn {
  enum : int { EDLM_ID_COLUMNS(EDLM_ENUMERATE) count };
};
struct StatColumn {
  enum : int { EDLM_STAT_COLUMNS(EDLM_ENUMERATE) count };
};
#undef EDLM_ENUMERATE

inline LogitStats empty_stats() {
  return {-INFINITY, -INFINITY, 0, 0, -INFINITY, -INFINITY, -1, -1, 0};
}

// a: ids before those of b. With shift = m_old - m_new, sum e^(z - m) and sum (z - m) e^(z - m) become
// sum * e^shift and (weighted + shift * sum) * e^shift.
inline void merge_stats(LogitStats& a, const LogitStats& b) {
  a.bad |= b.bad;
  if (b.best > a.best) {
    a.best = b.best;
    a.z_best = b.z_best;
    a.id_best = b.id_best;
  }
  if (b.z1 == -INFINITY) return;
  const bool second = b.z1 > a.z1;
  const LogitStats &high = second ? b : a, &low = second ? a : b;
  const float shift = low.z1 - high.z1, factor = std::exp(shift);
  const float sum = high.sum + (low.sum > 0 ? low.sum * factor : 0);
  const float weighted = high.weighted + (low.sum > 0 ? (low.weighted + shift * low.sum) * factor : 0);
  a.z2 = std::fmax(high.z2, low.z1);
  a.z1 = high.z1;
  a.id1 = high.id1;
  a.sum = sum;
  a.weighted = weighted;
}

// A row of both outputs; -1 and NaN where a logit is NaN or +inf, or none is finite.
EDLM_DEVICE void write_row(const LogitStats& stats, std::int32_t* ids, float* out) {
  const bool bad = stats.bad || stats.id1 < 0;
  const float log_sum = logf(stats.sum);
  ids[IdColumn::argmax] = bad ? -1 : stats.id1;
  ids[IdColumn::chosen] = bad ? -1 : stats.id_best;
  out[StatColumn::p_argmax] = bad ? NAN : 1.0f / stats.sum;
  out[StatColumn::p_second] = bad ? NAN : expf(stats.z2 - stats.z1) / stats.sum;
  out[StatColumn::entropy] = bad ? NAN : log_sum - stats.weighted / stats.sum;
  out[StatColumn::log_sum_exp] = bad ? NAN : stats.z1 + log_sum;
  out[StatColumn::p_chosen] = bad ? NAN : expf(stats.z_best - stats.z1) / stats.sum;
}

} // namespace edlm
