// What the torch side calls: starts the kernels of an op on a stream (a cudaStream_t) of the current device. Throws
// std::invalid_argument for shapes without a kernel and std::runtime_error for what CUDA reports.
#pragma once

#include "../params.h"
#include "../plan_cuda.h"

namespace edlm {

struct DeviceLimits {
  int multiprocessors, shared_bytes; // shared memory of a block
};

DeviceLimits device_limits();

void launch_rms_norm(const RmsNormParams&, void* stream);
void launch_silu_mul(const SiluMulParams&, void* stream);
void launch_quantize_rows(const QuantizeRowsParams&, void* stream);
void launch_linear(const LinearParams&, void* stream);
void launch_qkv_prepare(const QkvPrepareParams&, void* stream);
void launch_block_attention(const BlockAttentionParams&, const AttentionPlan&, void* stream);
void launch_row_stats(const RowStatsParams&, void* stream);
void launch_unmask(const UnmaskParams&, void* stream);
void launch_advance(const AdvanceParams&, void* stream);

} // namespace edlm
