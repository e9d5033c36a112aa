#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "build_config.h"

namespace edlm::cpu {

// CMake compiled table.cpp once per instruction set; EDLM_EACH_ISA(X) is X(isa) for each of them, best first.
#define EDLM_DECLARE(isa)       \
  namespace isa {               \
  extern const Kernels table;   \
  }
EDLM_EACH_ISA(EDLM_DECLARE)

namespace {

#if defined(__x86_64__)
bool has_scalar() { return true; }
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
[[maybe_unused]] bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
[[maybe_unused]] bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
#else
bool has_scalar() { return true; }
#endif

const Kernels& choose() {
  const char* forced = std::getenv("EDLM_ISA");
  const std::string wanted = forced ? forced : "";
#define EDLM_TRY(isa) \
  if ((wanted.empty() || wanted == #isa) && has_##isa()) return isa::table;
  EDLM_EACH_ISA(EDLM_TRY)
  throw std::runtime_error("EDLM_ISA=" + wanted + ": this machine or this build lacks it; built: " + compiled_isas());
}

} // namespace

const char* compiled_isas() {
#define EDLM_NAME(isa) "," #isa
  return &(EDLM_EACH_ISA(EDLM_NAME))[1];
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

} // namespace edlm::cpu
