#include "kernels.h"
#include "quantize_row.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

template <class T>
void rows(const SiluMulParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const T* gate = static_cast<const T*>(p.gate_up) + r * 2 * p.inner;
    const T* up = gate + p.inner;
    T* out = static_cast<T*>(p.out) + r * p.inner;
    for (std::int64_t i = 0; i < p.inner; i += kWidth) {
      const std::int64_t n = p.inner - i;
      const Vec g = load(gate + i, n);
      // e^-g is held below overflow; there g / (1 + e^-g) is 0 to fp32.
      store(out + i, g / (exp(min(-g, splat(88.0f))) + 1.0f) * load(up + i, n), n);
    }
    if (p.quantized.q) quantize_row(static_cast<const T*>(p.out), r, p.inner, p.quantized);
  }
}

} // namespace

void silu_mul(const SiluMulParams& p, std::int64_t begin, std::int64_t end) {
  p.dtype == DType::f32 ? rows<float>(p, begin, end) : rows<bf16>(p, begin, end);
}

} // namespace edlm::cpu::EDLM_ISA
