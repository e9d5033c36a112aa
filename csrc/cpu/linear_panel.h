// Rows times one panel of packed weights (LinearParams in params.h).
#pragma once

#include <algorithm>

#include "gemm_tile.h"
#include "kernels.h"

namespace edlm::cpu::EDLM_ISA {

template <class T>
struct Panel {
  static constexpr bool is_int = sizeof(T) == 1;
  std::int64_t units;
  const std::uint32_t* at; // [units, kPanel]; int8: then sums and scales, [kPanel] each

  Panel(const std::uint32_t* weight, std::int64_t panel, std::int64_t inputs)
      : units(inputs / kPerUnit<T>), at(weight + panel * (units + (is_int ? 2 : 0)) * kPanel) {}

  // The outputs c, c + 1 ... of a row with such sums and scale.
  EDLM_INLINE Vec value(const typename SumOf<T>::lane* sums, std::int64_t c, float x_scale) const {
    if constexpr (is_int) {
      const std::uint32_t* end = at + units * kPanel + c;
      const IntVec columns = load(reinterpret_cast<const std::int32_t*>(end));
      const IntVec exact = load(sums + c) - (128 - kIntZero) * columns;
      return __builtin_convertvector(exact, Vec) * (load(reinterpret_cast<const float*>(end + kPanel)) * x_scale);
    } else {
      return load(sums + c);
    }
  }
};

// sums [rows, kPanel] of the rows [row, row + rows) of x, in depths that stay in the caches.
template <class T>
void multiply(const void* x, std::int64_t row, std::int64_t rows, const Panel<T>& weight,
              typename SumOf<T>::lane* sums) {
  const auto* at = static_cast<const std::uint32_t*>(x) + row * weight.units;
  for (std::int64_t u = 0; u < weight.units; u += kLinearUnits)
    gemm<T>({at + u, weight.units, 1}, weight.at + u * kPanel, kPanel, sums, kPanel, rows, kPanel,
            std::min(kLinearUnits, weight.units - u), u > 0, true);
}

} // namespace edlm::cpu::EDLM_ISA
