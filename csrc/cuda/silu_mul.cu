#include "silu_mul.cuh"

#include "kernels.h"

namespace edlm {

void launch_silu_mul(const SiluMulParams& params, void* stream) { cuda::silu_mul(params, static_cast<cuda::Stream>(stream)); }

} // namespace edlm
