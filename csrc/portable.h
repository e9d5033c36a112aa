// Functions that the CPU's kernels, the CUDA kernels and the simulator share: one source for all of them.
#pragma once

#if defined(__CUDACC__)
#define EDLM_HOST_DEVICE __host__ __device__
#define EDLM_DEVICE __device__ __forceinline__ // on a GPU only there: it may call what only a GPU has
#else
#define EDLM_HOST_DEVICE
#define EDLM_DEVICE inline
#endif
