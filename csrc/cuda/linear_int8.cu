#include "linear.cuh"

namespace edlm::cuda {

template void linear_typed<std::int8_t>(const LinearParams&, Stream);

} // namespace edlm::cuda
