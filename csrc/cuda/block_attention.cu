#include "block_attention.cuh"

#include "kernels.h"

namespace edlm {

DeviceLimits device_limits() { return {cuda::multiprocessors(), cuda::shared_memory_limit()}; }

void launch_block_attention(const BlockAttentionParams& params, const AttentionPlan& plan, void* stream) {
  cuda::block_attention(params, plan, static_cast<cuda::Stream>(stream));
}

} // namespace edlm
