// Merging the statistics of parts of a logits row: in the order of the ids, so that ties go to the lowest one.
#pragma once

#include <cmath>

#include "params.h"

namespace edlm {

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

} // namespace edlm
