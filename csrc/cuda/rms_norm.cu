#include "rms_norm.cuh"

#include "kernels.h"

namespace edlm {

void launch_rms_norm(const RmsNormParams& params, void* stream) { cuda::rms_norm(params, static_cast<cuda::Stream>(stream)); }

} // namespace edlm
