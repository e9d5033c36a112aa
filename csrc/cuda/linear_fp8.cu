#include "linear.cuh"

namespace edlm::cuda {

template void linear_typed<e4m3>(const LinearParams&, Stream);

} // namespace edlm::cuda
