#include "../plan.h"
#include "linear_panel.h"
#include "quantize_row.h"

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

} // namespace

void linear(const LinearParams& p, std::int64_t begin, std::int64_t end) {
  if (p.x_scale)
    p.dtype == DType::f32 ? panels<std::int8_t, float>(p, begin, end) : panels<std::int8_t, bf16>(p, begin, end);
  else
    p.dtype == DType::f32 ? panels<float, float>(p, begin, end) : panels<bf16, bf16>(p, begin, end);
}

void quantize_rows(const QuantizeRowsParams& p, std::int64_t begin, std::int64_t end) {
  const QuantizedOut out{p.q, p.scale, p.q_dtype};
  for (std::int64_t row = begin; row < end; ++row)
    p.dtype == DType::f32 ? quantize_row(static_cast<const float*>(p.x), row, p.columns, out)
                          : quantize_row(static_cast<const bf16*>(p.x), row, p.columns, out);
}

} // namespace edlm::cpu::EDLM_ISA
