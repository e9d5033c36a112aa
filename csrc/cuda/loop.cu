// The device-side denoising loop for edlm_engine.device_loop, through ctypes. A function that can fail returns null, or
// a message that is good until the thread's next call. Graphs, control and stream belong to the current device.
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "loop.h"
#if CUDART_VERSION >= 12040
#include "loop.cuh"
#include "loop_graph.h"
#endif

#define EDLM_EXPORT extern "C" __attribute__((visibility("default")))

namespace edlm {
namespace {

const char* remembered(const std::string& message) {
  static thread_local std::string kept;
  kept = message;
  return kept.c_str();
}

// "12.4" for 12040, as CUDA numbers its versions.
std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

constexpr int kNeeded = 12040; // conditional nodes that loop

} // namespace
} // namespace edlm

// Null if the toolkit of this build and the driver know loops in graphs, else why not.
EDLM_EXPORT const char* edlm_loop_unsupported() {
  using namespace edlm;
  if (CUDART_VERSION < kNeeded)
    return remembered("this build was made with CUDA " + version(CUDART_VERSION) + ", loops in graphs need " +
                      version(kNeeded));
  int driver = 0;
  if (const cudaError_t status = cudaDriverGetVersion(&driver); status != cudaSuccess) {
    cudaGetLastError();
    return remembered(std::string("cudaDriverGetVersion: ") + cudaGetErrorString(status));
  }
  if (driver == 0) return remembered("there is no NVIDIA driver");
  if (driver < kNeeded)
    return remembered("the NVIDIA driver is one for CUDA " + version(driver) + ", loops in graphs need " +
                      version(kNeeded));
  return nullptr;
}

#if CUDART_VERSION >= 12040

// with_commit, plain: cudaGraph_t, copied; the memory that their nodes use must stay. control: LoopControl in device
// memory. *loop: for the functions below.
EDLM_EXPORT const char* edlm_loop_create(void* with_commit, void* plain, std::int32_t* control,
                                         std::int32_t max_steps, void** loop) {
  using namespace edlm;
  *loop = nullptr;
  if (const char* reason = edlm_loop_unsupported()) return reason;
  try {
    if (!with_commit || !plain || !control) throw std::runtime_error("with_commit, plain and control must not be null");
    if (max_steps < 1) throw std::runtime_error("max_steps must be at least 1, got " + std::to_string(max_steps));
    const cuda::LoopKernels kernels{reinterpret_cast<void*>(cuda::loop_begin_kernel),
                                    reinterpret_cast<void*>(cuda::loop_next_kernel), cuda::kLoopThreads};
    *loop = cuda::build_loop(kernels, static_cast<cudaGraph_t>(with_commit), static_cast<cudaGraph_t>(plain),
                             reinterpret_cast<LoopControl*>(control), max_steps);
  } catch (const std::exception& error) {
    return remembered(error.what());
  }
  return nullptr;
}

// Queues one run of the loop on a cudaStream_t. Runs of one loop follow each other, whatever their streams.
EDLM_EXPORT const char* edlm_loop_launch(void* loop, void* stream) {
  try {
    edlm::cuda::check_loop(cudaGraphLaunch(static_cast<cudaGraphExec_t>(loop), static_cast<cudaStream_t>(stream)),
                           "cudaGraphLaunch");
  } catch (const std::exception& error) {
    return edlm::remembered(error.what());
  }
  return nullptr;
}

// A run under way ends first; null does nothing.
EDLM_EXPORT void edlm_loop_destroy(void* loop) {
  if (loop && cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(loop)) != cudaSuccess) cudaGetLastError();
}

#else

EDLM_EXPORT const char* edlm_loop_create(void*, void*, std::int32_t*, std::int32_t, void** loop) {
  *loop = nullptr;
  return edlm_loop_unsupported();
}
EDLM_EXPORT const char* edlm_loop_launch(void*, void*) { return edlm_loop_unsupported(); }
EDLM_EXPORT void edlm_loop_destroy(void*) {}

#endif
