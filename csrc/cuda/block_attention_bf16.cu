#include "block_attention.cuh"

namespace edlm::cuda {

template void block_attention_typed<bf16>(const BlockAttentionParams&, const AttentionPlan&, Stream);

} // namespace edlm::cuda
