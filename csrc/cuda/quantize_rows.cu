#include "quantize_rows.cuh"

#include "kernels.h"

namespace edlm {

void launch_quantize_rows(const QuantizeRowsParams& params, void* stream) {
  cuda::quantize_rows(params, static_cast<cuda::Stream>(stream));
}

} // namespace edlm
