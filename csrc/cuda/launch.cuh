// Starting a kernel, and what there is to know about the device before.
#pragma once

#if defined(EDLM_HOST_SIM)
#include "../host_sim/launch.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "ptx.cuh"

namespace edlm::cuda {

using Stream = cudaStream_t;

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::string message = std::string(what) + ": " + cudaGetErrorString(status);
  if (status == cudaErrorNoKernelImageForDevice)
    message += "; this build has no kernels for this GPU: `edlm info` lists what it has";
  if (status == cudaErrorInsufficientDriver) message += "; install a newer NVIDIA driver or use device='cpu'";
  cudaGetLastError(); // so that it is reported once
  throw std::runtime_error(message);
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }
inline int shared_memory_limit() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// The architecture that the code of this kernel for the current GPU was written for: 90 for sm_90.
template <class Params>
int architecture_of(void (*kernel)(Params)) {
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  return attributes.ptxVersion;
}

template <class Params>
void launch(const char* name, void (*kernel)(Params), dim3 grid, int threads, std::size_t shared, Stream stream,
            const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared > (48 << 10))
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
               name);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, params), name);
}

} // namespace edlm::cuda

#endif

#include <stdexcept>
#include <string>

namespace edlm::cuda {

// Throws unless the kernel, which has e4m3 in it, has code for that here.
template <class Params>
void check_e4m3(const char* name, void (*kernel)(Params)) {
  const int built = architecture_of(kernel);
  if (built < kE4m3Architecture)
    throw std::invalid_argument(std::string(name) + ": float8 needs a GPU of compute capability 8.9 or later and kernels built "
                                "for it; the ones that this GPU runs are for " + std::to_string(built / 10) + "." +
                                std::to_string(built % 10));
}

} // namespace edlm::cuda
