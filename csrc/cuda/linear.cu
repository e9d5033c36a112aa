#include "linear.cuh"

#include "kernels.h"

namespace edlm {

void launch_linear(const LinearParams& params, void* stream) { cuda::linear(params, static_cast<cuda::Stream>(stream)); }

} // namespace edlm
