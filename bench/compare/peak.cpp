// What one thread multiplies at best, from registers alone: prints bf16 GFLOP/s and int8 GOP/s.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

// A dot product into each of sixteen registers: more than the latency of one needs.
#define EACH(instruction)                                                                                    \
  instruction(16) instruction(17) instruction(18) instruction(19) instruction(20) instruction(21)             \
  instruction(22) instruction(23) instruction(24) instruction(25) instruction(26) instruction(27)             \
  instruction(28) instruction(29) instruction(30) instruction(31)
#define BF16(r) "vdpbf16ps %0, %0, %%zmm" #r "\n"
#define INT8(r) "vpdpbusd %0, %0, %%zmm" #r "\n"
#define CLOBBERED                                                                                            \
  "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", \
      "xmm28", "xmm29", "xmm30", "xmm31"

template <class Turn>
double best_rate(double operations, Turn turn) {
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    constexpr int kTurns = 5'000'000;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kTurns; ++i) turn();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, kTurns * operations / seconds.count() / 1e9);
  }
  return best;
}

int main() {
  const __m512i x = _mm512_setzero_si512();
  const double bf16 = best_rate(16 * 64, [&] { asm volatile(EACH(BF16) : : "v"(x) : CLOBBERED); });
  const double int8 = best_rate(16 * 128, [&] { asm volatile(EACH(INT8) : : "v"(x) : CLOBBERED); });
  std::printf("%.1f %.1f\n", bf16, int8);
}
