#include "linear.cuh"

namespace edlm::cuda {

template void linear_typed<f16>(const LinearParams&, Stream);

} // namespace edlm::cuda
