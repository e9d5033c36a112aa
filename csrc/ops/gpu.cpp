#include "gpu.h"

#include <torch/csrc/stable/ops.h>

namespace edlm {

GpuScope::GpuScope([[maybe_unused]] const Tensor& tensor) {
#if defined(EDLM_CUDA) // a simulated GPU has no other beside it, and no streams
  const std::int32_t device = tensor.get_device_index();
  guard_.emplace(device);
  check_torch(aoti_torch_get_current_cuda_stream(device, &stream_), "torch's current CUDA stream");
#endif
}

Tensor workspace(const Tensor& like, std::int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

} // namespace edlm
