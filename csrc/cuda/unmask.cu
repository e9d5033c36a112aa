#include "unmask.cuh"
#include "kernels.h"

namespace edlm {
void unmask_cuda(const UnmaskParams& params, void* stream) { cuda::unmask(params, static_cast<cuda::Stream>(stream)); }
} // namespace edlm
