// The kernels of the best instruction set that this machine has, chosen once when the library is loaded.
#pragma once

#include <cstdint>

#include "../params.h"

namespace edlm::cpu {

// Each works on the items [begin, end) and knows nothing of threads.
struct Kernels {
  const char* isa;
  void (*rms_norm)(const RmsNormParams&, std::int64_t begin, std::int64_t end);       // items: rows
  void (*silu_mul)(const SiluMulParams&, std::int64_t begin, std::int64_t end);       // items: rows
  void (*quantize_rows)(const QuantizeRowsParams&, std::int64_t begin, std::int64_t end); // items: rows
  void (*linear)(const LinearParams&, std::int64_t begin, std::int64_t end);          // items: panels of the weight
  void (*qkv_prepare)(const QkvPrepareParams&, std::int64_t begin, std::int64_t end); // items: rows
  void (*block_attention)(const BlockAttentionParams&, std::int64_t begin, std::int64_t end, void* workspace); // tiles
  void (*block_attention_merge)(const BlockAttentionParams&, std::int64_t begin, std::int64_t end); // tiles, afterwards
  std::int64_t (*block_attention_workspace)(const BlockAttentionParams&);             // bytes, per thread
  void (*row_stats)(const RowStatsParams&, std::int64_t begin, std::int64_t end);     // items: vocabulary parts
  // Sum of e^((z - largest) / temperature) of padded logits.
  double (*softmax_sum)(const float* z, std::int64_t count, float largest, float temperature);
};

// Throws std::runtime_error where why_no_kernels() gives a reason.
const Kernels& kernels();

// Why the instruction set that EDLM_ISA names cannot be used here; null if it can.
const char* why_no_kernels();

// Names of the instruction sets in this library, best first, separated by commas.
const char* compiled_isas();

// Need no instruction set of their own. Items: rows; unmask() and advance() do all slots.
void row_stats_finish(const RowStatsParams&, std::int64_t begin, std::int64_t end);
void unmask(const UnmaskParams&);
void advance(const AdvanceParams&);

} // namespace edlm::cpu
