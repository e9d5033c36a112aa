#include "../plan.h"
#include "linear_panel.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

template <class T, class Out>
void panels(const LinearParams& p, std::int64_t begin, std::int64_t end) {
  alignas(64) typename SumOf<T>::lane sums[kLinearRows * kPanel];
  for (std::int64_t panel = begin; panel < end; ++panel) {
    const std::int64_t first = panel * kPanel, count = std::min(kPanel, p.outputs - first);
    const Panel<T> weight(p.weight, panel, p.inputs);
    for (std::int64_t row = 0; row < p.rows; row += kLinearRows) {
      const std::int64_t rows = std::min(kLinearRows, p.rows - row);
      multiply<T>(p.x, row, rows, weight, sums);
      for (std::int64_t r = 0; r < rows; ++r) {
        Out* out = static_cast<Out*>(p.out) + (row + r) * p.outputs + first;
        for (std::int64_t c = 0; c < count; c += kWidth)
          store(out + c, weight.value(sums + r * kPanel, c, p.x_scale ? p.x_scale[row + r] : 1.0f), count - c);
      }
    }
  }
}

template <class T>
void quantize(const QuantizeRowsParams& p, std::int64_t row) {
  const T* x = static_cast<const T*>(p.x) + row * p.columns;
  std::uint8_t* q = p.q + row * p.columns;
  Vec largest{}, zero{};
  for (std::int64_t i = 0; i < p.columns; i += kWidth) {
    const Vec v = load(x + i, p.columns - i);
    largest = max(largest, max(v, -v));
    zero = fma(v, splat(0.0f), zero); // NaN where v is not finite: such a row must not come out as numbers
  }
  const float most = reduce_max(largest);
  p.scale[row] = most / 127.0f + reduce_add(zero);
  const Vec inverse = splat(most > 0 ? 127.0f / most : 0.0f);
  for (std::int64_t i = 0; i < p.columns; i += kWidth) {
    // adding the magic number rounds to an integer, ties to even, and leaves it in the low bits
    const Vec scaled = load(x + i, p.columns - i) * inverse;
    const UintVec bits = bit_cast<UintVec>(scaled + (0x1.8p23f + 128.0f)) & 0xffu;
    typedef std::uint8_t Bytes __attribute__((vector_size(kWidth)));
    const Bytes bytes = __builtin_convertvector(bits, Bytes);
    std::memcpy(q + i, &bytes, std::min<std::int64_t>(kWidth, p.columns - i));
  }
}

} // namespace

void linear(const LinearParams& p, std::int64_t begin, std::int64_t end) {
  if (p.x_scale)
    p.dtype == DType::f32 ? panels<std::int8_t, float>(p, begin, end) : panels<std::int8_t, bf16>(p, begin, end);
  else
    p.dtype == DType::f32 ? panels<float, float>(p, begin, end) : panels<bf16, bf16>(p, begin, end);
}

void quantize_rows(const QuantizeRowsParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row)
    p.dtype == DType::f32 ? quantize<float>(p, row) : quantize<bf16>(p, row);
}

} // namespace edlm::cpu::EDLM_ISA
