#include "kernels.h"
#include "quantize_row.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

template <class T>
void norm_row(T* x, const T* delta, const T* weight, T* out, std::int64_t hidden, float eps) {
  Vec squares{};
  for (std::int64_t i = 0; i < hidden; i += kWidth) {
    const std::int64_t n = hidden - i;
    if (delta) store(x + i, load(x + i, n) + load(delta + i, n), n);
    const Vec v = load(x + i, n); // as rounded to T
    squares = fma(v, v, squares);
  }
  const float scale = 1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(hidden) + eps);
  for (std::int64_t i = 0; i < hidden; i += kWidth) {
    const std::int64_t n = hidden - i;
    store(out + i, load(x + i, n) * scale * load(weight + i, n), n);
  }
}

template <class T>
void rows(const RmsNormParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const std::int64_t at = r * p.hidden;
    norm_row(static_cast<T*>(p.x) + at, p.delta ? static_cast<const T*>(p.delta) + at : nullptr,
             static_cast<const T*>(p.weight), static_cast<T*>(p.out) + at, p.hidden, p.eps);
    if (p.quantized.q) quantize_row(static_cast<const T*>(p.out), r, p.hidden, p.quantized);
  }
}

} // namespace

void rms_norm(const RmsNormParams& p, std::int64_t begin, std::int64_t end) {
  p.dtype == DType::f32 ? rows<float>(p, begin, end) : rows<bf16>(p, begin, end);
}

} // namespace edlm::cpu::EDLM_ISA
