#include "block_attention.cuh"

namespace edlm::cuda {

template void block_attention_typed<f16>(const BlockAttentionParams&, const AttentionPlan&, Stream);

} // namespace edlm::cuda
