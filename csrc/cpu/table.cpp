#include "dispatch.h"
#include "kernels.h"

#define EDLM_STRING(x) #x
#define EDLM_NAME_OF(isa) EDLM_STRING(isa)

namespace edlm::cpu::EDLM_ISA {

extern const Kernels table;
const Kernels table = {EDLM_NAME_OF(EDLM_ISA), rms_norm, silu_mul, quantize_rows, linear, qkv_prepare,
                       block_attention, block_attention_merge, block_attention_workspace, row_stats, softmax_sum};

} // namespace edlm::cpu::EDLM_ISA
