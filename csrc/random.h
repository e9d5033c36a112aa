// Counter-based random numbers and a logarithm that give the same bits on every device. Products feed additions only
// through fmaf, so no compiler setting can contract them differently.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "portable.h"

namespace edlm {

struct PhiloxBlock {
  std::uint32_t word[4];
};

// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
EDLM_HOST_DEVICE inline PhiloxBlock philox(PhiloxBlock counter, std::uint32_t key0, std::uint32_t key1) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * counter.word[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(p1 >> 32) ^ counter.word[1] ^ key0, static_cast<std::uint32_t>(p1),
                static_cast<std::uint32_t>(p0 >> 32) ^ counter.word[3] ^ key1, static_cast<std::uint32_t>(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The four words for vocabulary ids 4 * quad ... 4 * quad + 3. seed: its low and its high word.
EDLM_HOST_DEVICE inline PhiloxBlock philox_ids(std::uint32_t quad, const std::int32_t (&seed)[2], std::int32_t position,
                                               std::int32_t step) {
  return philox({{quad, static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(step), 0}},
                static_cast<std::uint32_t>(seed[0]), static_cast<std::uint32_t>(seed[1]));
}

// Natural logarithm of a positive normal number, to about 1 ulp; polynomial of Cephes' logf.
EDLM_HOST_DEVICE inline float fixed_log(float x) {
  std::int32_t bits;
  std::memcpy(&bits, &x, 4);
  const std::int32_t exponent = (bits - 0x3f3504f3) >> 23; // so that the mantissa lies in [sqrt(1/2), sqrt(2))
  bits -= static_cast<std::int32_t>(static_cast<std::uint32_t>(exponent) << 23);
  float mantissa;
  std::memcpy(&mantissa, &bits, 4);
  const float e = static_cast<float>(exponent);
  const float f = mantissa - 1.0f;
  const float f2 = f * f;
  float p = 7.0376836292e-2f;
  p = fmaf(p, f, -1.1514610310e-1f);
  p = fmaf(p, f, 1.1676998740e-1f);
  p = fmaf(p, f, -1.2420140846e-1f);
  p = fmaf(p, f, 1.4249322787e-1f);
  p = fmaf(p, f, -1.6668057665e-1f);
  p = fmaf(p, f, 2.0000714765e-1f);
  p = fmaf(p, f, -2.4999993993e-1f);
  p = fmaf(p, f, 3.3333331174e-1f);
  const float cubic = p * f * f2;
  const float low = fmaf(-0.5f, f2, fmaf(e, -2.12194440e-4f, cubic));
  return fmaf(e, 0.693359375f, f + low);
}

// Standard Gumbel number from 32 random bits. u has 23 bits, so that u + half a step is exact in fp32 and never 1.
EDLM_HOST_DEVICE inline float gumbel(std::uint32_t bits) {
  const float u = (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-23f;
  return -fixed_log(-fixed_log(u));
}

// No gumbel() is larger.
constexpr float kMaxGumbel = 16.7f;

} // namespace edlm
