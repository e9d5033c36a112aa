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

std::string forced_isa() {
  const char* forced = std::getenv("EDLM_ISA");
  return forced ? forced : "";
}

// Null where the environment asks for kernels that cannot run here.
const Kernels* choose() {
  const std::string wanted = forced_isa();
#define EDLM_TRY(isa) \
  if ((wanted.empty() || wanted == #isa) && has_##isa()) return &isa::table;
  EDLM_EACH_ISA(EDLM_TRY)
  return nullptr;
}

const Kernels* chosen() {
  static const Kernels* const table = choose();
  return table;
}

} // namespace

const char* compiled_isas() {
#define EDLM_NAME(isa) "," #isa
  return &(EDLM_EACH_ISA(EDLM_NAME))[1];
}

const char* why_no_kernels() {
  if (chosen()) return nullptr;
  static const std::string reason = [] {
    const std::string wanted = forced_isa(), built = std::string(",") + compiled_isas() + ",";
    const bool known = built.find("," + wanted + ",") != std::string::npos;
    if (wanted.empty()) return std::string("this machine has no instruction set of this build: ") + compiled_isas();
    return "EDLM_ISA=" + wanted + (known ? ": this machine lacks it" : ": no such instruction set in this build") +
           "; built: " + compiled_isas();
  }();
  return reason.c_str();
}

const Kernels& kernels() {
  if (!chosen()) throw std::runtime_error(why_no_kernels());
  return *chosen();
}

} // namespace edlm::cpu
