#include "qkv_prepare.cuh"

#include "kernels.h"

namespace edlm {

void launch_qkv_prepare(const QkvPrepareParams& params, void* stream) { cuda::qkv_prepare(params, static_cast<cuda::Stream>(stream)); }

} // namespace edlm
