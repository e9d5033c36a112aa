// The host twin of cuda/launch.cuh.
#pragma once

#include "ptx.h"

namespace edlm::cuda {

using Stream = void*;

inline int multiprocessors() { return 4; }
inline int shared_memory_limit() { return 163 << 10; }

inline int simulated_architecture = 90;

template <class Params>
int architecture_of(void (*)(Params)) {
  return simulated_architecture;
}

template <class Params>
struct Launch {
  void (*kernel)(Params);
  Params params;
};

template <class Params>
void launch(const char* name, void (*kernel)(Params), dim3 grid, int threads, std::size_t shared, Stream,
            const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared > static_cast<std::size_t>(shared_memory_limit())) host_sim::fail("%s: %zu bytes shared", name, shared);
  const Launch<Params> launch{kernel, params};
  machine.run(
      [](const void* of) {
        const auto& launch = *static_cast<const Launch<Params>*>(of);
        launch.kernel(launch.params);
      },
      &launch, grid, threads, shared);
}

} // namespace edlm::cuda
