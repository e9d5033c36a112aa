// The launches of cuda/kernels.h on the simulator, for a build of the torch side that takes the CPU's tensors for a
// GPU's: what lies between torch and the kernels then runs without a GPU, too.
#include "../cuda/advance.cu"
#include "../cuda/block_attention.cu"
#include "../cuda/linear.cu"
#include "../cuda/qkv_prepare.cu"
#include "../cuda/quantize_rows.cu"
#include "../cuda/rms_norm.cu"
#include "../cuda/row_stats.cu"
#include "../cuda/silu_mul.cu"
#include "../cuda/unmask.cu"
