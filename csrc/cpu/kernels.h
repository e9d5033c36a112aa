// The kernels that are compiled once per instruction set, into the namespace EDLM_ISA; their items are in dispatch.h.
#pragma once

#include <cstdint>

#include "../params.h"

namespace edlm::cpu::EDLM_ISA {

void rms_norm(const RmsNormParams&, std::int64_t begin, std::int64_t end);
void silu_mul(const SiluMulParams&, std::int64_t begin, std::int64_t end);
void quantize_rows(const QuantizeRowsParams&, std::int64_t begin, std::int64_t end);
void linear(const LinearParams&, std::int64_t begin, std::int64_t end);
void qkv_prepare(const QkvPrepareParams&, std::int64_t begin, std::int64_t end);
void block_attention(const BlockAttentionParams&, std::int64_t begin, std::int64_t end, void* workspace);
void block_attention_merge(const BlockAttentionParams&, std::int64_t begin, std::int64_t end);
std::int64_t block_attention_workspace(const BlockAttentionParams&);
void row_stats(const RowStatsParams&, std::int64_t begin, std::int64_t end);
double softmax_sum(const float* z, std::int64_t count, float largest, float temperature);

} // namespace edlm::cpu::EDLM_ISA
