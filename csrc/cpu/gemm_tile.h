// C [rows, columns] += A [rows, K] B [K, columns] for small operands in the first caches. A is row-major, B is packed
// in units along K: unit [K / kPerUnit, columns]. An element's sum runs along K in one chain whatever the tile that it
// falls into, so a row's result does not depend on its neighbours.
#pragma once

#include "vec.h"

namespace edlm::cpu::EDLM_ISA {

template <class T, int R, int C>
EDLM_INLINE void gemm_tile(const T* a, std::int64_t lda, const std::uint32_t* b, std::int64_t ldb, float* c,
                           std::int64_t ldc, std::int64_t units) {
  Vec sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) sum[r][j] = load(c + r * ldc + j * kWidth);
  for (std::int64_t u = 0; u < units; ++u) {
    Units<T> column[C];
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) column[j] = load_units<T>(b + u * ldb + j * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Units<T> row = splat_unit<T>(a + r * lda + u * kPerUnit<T>);
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) sum[r][j] = dot(sum[r][j], row, column[j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) store(c + r * ldc + j * kWidth, sum[r][j]);
}

// columns: a multiple of 16.
template <class T>
void gemm(const T* a, std::int64_t lda, const std::uint32_t* b, std::int64_t ldb, float* c, std::int64_t ldc,
          std::int64_t rows, std::int64_t columns, std::int64_t units) {
  constexpr int kRows = kRegisters == 32 ? 8 : 4;
  auto row_tiles = [&](auto width, std::int64_t j) {
    constexpr int C = decltype(width)::value;
    std::int64_t r = 0;
    for (; r + kRows <= rows; r += kRows)
      gemm_tile<T, kRows, C>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, units);
    for (; r + 2 <= rows; r += 2) gemm_tile<T, 2, C>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, units);
    if (r < rows) gemm_tile<T, 1, C>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, units);
  };
  std::int64_t j = 0;
  for (; j + 2 * kWidth <= columns; j += 2 * kWidth) row_tiles(Constant<2>{}, j);
  for (; j < columns; j += kWidth) row_tiles(Constant<1>{}, j);
}

} // namespace edlm::cpu::EDLM_ISA
