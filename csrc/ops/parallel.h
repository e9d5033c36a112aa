#pragma once

#include <torch/csrc/stable/ops.h>

#include "../plan.h"

namespace edlm {

// Calls work(begin, end) for ranges of [0, items) on torch's own threads; little work stays on the caller's.
template <class Work>
void parallel(std::int64_t items, std::int64_t cost_per_item, const Work& work) {
  if (items > 0) torch::stable::parallel_for(0, items, grain_size(cost_per_item), work);
}

} // namespace edlm
