#include "unmask.cuh"

#include "kernels.h"

namespace edlm {

void launch_unmask(const UnmaskParams& params, void* stream) { cuda::unmask(params, static_cast<cuda::Stream>(stream)); }

} // namespace edlm
