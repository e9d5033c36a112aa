#include "advance.cuh"

#include "kernels.h"

namespace edlm {

void launch_advance(const AdvanceParams& params, void* stream) {
  cuda::advance(params, static_cast<cuda::Stream>(stream));
}

} // namespace edlm
