#include "silu_mul.cuh"
#include "kernels.h"

namespace edlm {
void silu_mul_cuda(const SiluMulParams& params, void* stream) { cuda::silu_mul(params, static_cast<cuda::Stream>(stream)); }
} // namespace edlm
