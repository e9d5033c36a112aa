// A row of activations as bytes (QuantizeRowsParams in params.h).
#pragma once

#include <algorithm>

#include "vec.h"

namespace edlm::cpu::EDLM_ISA {

// x: T [rows, columns].
template <class T>
void quantize_row(const T* x, std::int64_t row, std::int64_t columns, const QuantizedOut& out) {
  x += row * columns;
  std::uint8_t* q = out.q + row * columns;
  Vec largest{}, zero{};
  for (std::int64_t i = 0; i < columns; i += kWidth) {
    const Vec v = load(x + i, columns - i);
    largest = max(largest, max(v, -v));
    zero = fma(v, splat(0.0f), zero); // NaN where v is not finite: such a row must not come out as numbers
  }
  const float most = reduce_max(largest);
  out.scale[row] = most / 127.0f + reduce_add(zero);
  const Vec inverse = splat(most > 0 ? 127.0f / most : 0.0f);
  for (std::int64_t i = 0; i < columns; i += kWidth) {
    // adding the magic number rounds to an integer, ties to even, and leaves it in the low bits
    const Vec scaled = load(x + i, columns - i) * inverse;
    const UintVec bits = bit_cast<UintVec>(scaled + (0x1.8p23f + 128.0f)) & 0xffu;
    typedef std::uint8_t Bytes __attribute__((vector_size(kWidth)));
    const Bytes bytes = __builtin_convertvector(bits, Bytes);
    std::memcpy(q + i, &bytes, std::min<std::int64_t>(kWidth, columns - i));
  }
}

} // namespace edlm::cpu::EDLM_ISA
