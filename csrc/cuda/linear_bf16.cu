#include "linear.cuh"

namespace edlm::cuda {

template void linear_typed<bf16>(const LinearParams&, Stream);

} // namespace edlm::cuda
