#include "row_stats.cuh"

#include "kernels.h"

namespace edlm {

void launch_row_stats(const RowStatsParams& params, void* stream) { cuda::row_stats(params, static_cast<cuda::Stream>(stream)); }

} // namespace edlm
