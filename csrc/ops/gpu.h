// What the ops need of a GPU beside its kernels.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "../cuda/kernels.h"
#include "check.h"

namespace edlm {

// What ops do on a GPU stands behind `if constexpr (kHasGpu)`: a build without CUDA then refers to none of it.
#if defined(EDLM_CUDA) || defined(EDLM_HOST_SIM)
constexpr bool kHasGpu = true;
#else
constexpr bool kHasGpu = false;
#endif

// While it lives, the tensor's GPU is the current one.
class GpuScope {
 public:
  explicit GpuScope(const Tensor& tensor);

  // The current stream of that GPU, a cudaStream_t.
  void* stream() const { return stream_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

// What torch's C functions return, as an exception. (Torch's own macro has another name in every version.)
inline void check_torch(AOTITorchError status, const char* what) {
  if (status != AOTI_TORCH_SUCCESS) throw std::runtime_error(std::string(what) + " failed");
}

// Uninitialized memory on the tensor's device. Freed when the op returns, it is given out again in the order of the
// stream, so the kernels may still be at it.
Tensor workspace(const Tensor& like, std::int64_t bytes);

} // namespace edlm
