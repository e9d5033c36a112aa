// C [rows, columns] (+)= A [rows, K] B [K, columns] for small operands in the first caches. B is packed in units along
// K: unit [K / kPerUnit, columns]; A's units may lie anywhere in regular steps. An element's sum runs along K in one
// chain whatever the tile that it falls into, so a result does not depend on its neighbours.
#pragma once

#include "vec.h"

namespace edlm::cpu::EDLM_ISA {

constexpr std::int64_t kLine = 64; // bytes of a cache line

// Units of A: unit u of row r is at + r * row_stride + u * unit_stride.
struct UnitMatrix {
  const std::uint32_t* at;
  std::int64_t row_stride, unit_stride;
};

// What a tile of rows fetches into the second-level cache while it multiplies, `lines` per unit: without it, memory and
// multipliers would wait for each other by turns.
struct Ahead {
  const char* at;
  std::int64_t lines;
};

// b: a panel of the weight, behind which the next one lies; pass: which of the `passes` tiles of rows over it. The share
// of a pass and the distance are those measured fastest.
inline Ahead ahead_of(const std::uint32_t* b, std::int64_t bytes_per_unit, std::int64_t units, std::int64_t pass,
                      std::int64_t passes) {
  const auto* at = reinterpret_cast<const char*>(b);
  const std::int64_t lines = bytes_per_unit / kLine;
  if (passes == 1) return {at + 64 * bytes_per_unit, lines};
  const std::int64_t share = pass - (passes > 2); // the first of many has enough to do with reading this panel
  return {at + (units * lines + share * units) * kLine, share >= 0 && share < lines};
}

template <class T, int R, int C>
EDLM_INLINE void gemm_tile(UnitMatrix a, const std::uint32_t* b, std::int64_t ldb, typename SumOf<T>::lane* c,
                           std::int64_t ldc, std::int64_t units, bool accumulate, Ahead ahead) {
  typename SumOf<T>::vec sum[R][C] = {};
  if (accumulate)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) sum[r][j] = load(c + r * ldc + j * kWidth);
  for (std::int64_t u = 0; u < units; ++u) {
    for (std::int64_t line = u * ahead.lines; line < (u + 1) * ahead.lines; ++line)
      __builtin_prefetch(ahead.at + line * kLine, 0, 2);
    Units<T> column[C];
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) column[j] = load_units<T>(b + u * ldb + j * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Units<T> row = splat_unit<T>(a.at + r * a.row_stride + u * a.unit_stride);
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) sum[r][j] = dot(sum[r][j], row, column[j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) store(c + r * ldc + j * kWidth, sum[r][j]);
}

// columns: a multiple of 16. streamed: b is read for the first time, and on behind its end next.
template <class T>
void gemm(UnitMatrix a, const std::uint32_t* b, std::int64_t ldb, typename SumOf<T>::lane* c, std::int64_t ldc,
          std::int64_t rows, std::int64_t columns, std::int64_t units, bool accumulate, bool streamed = false) {
  constexpr int kRows = kRegisters == 32 ? 8 : 4;
  const std::int64_t passes = (rows + kRows - 1) / kRows;
  std::int64_t j = 0;
  auto rows_of = [&](auto width) {
    std::int64_t r = 0;
    auto tile = [&](auto height) {
      constexpr int R = decltype(height)::value, C = decltype(width)::value;
      const Ahead ahead = streamed ? ahead_of(b, ldb * 4, units, r / kRows, passes) : Ahead{};
      gemm_tile<T, R, C>({a.at + r * a.row_stride, a.row_stride, a.unit_stride}, b + j, ldb, c + r * ldc + j, ldc,
                         units, accumulate, ahead);
      r += R;
    };
    while (r + kRows <= rows) tile(Constant<kRows>{});
    while (r + 2 <= rows) tile(Constant<2>{});
    if (r < rows) tile(Constant<1>{});
    j += decltype(width)::value * kWidth;
  };
  while (j + 2 * kWidth <= columns) rows_of(Constant<2>{});
  while (j < columns) rows_of(Constant<1>{});
}

} // namespace edlm::cpu::EDLM_ISA
