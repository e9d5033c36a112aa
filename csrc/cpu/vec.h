// Vectors of fp32 lanes for AVX-512, AVX2 or any machine, by the flags this file is compiled with. Everything lives in
// the namespace EDLM_ISA, since each kernel is compiled once per instruction set into the same library.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../params.h"

#define EDLM_INLINE [[gnu::always_inline]] inline

namespace edlm::cpu::EDLM_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kWidth = 8, kRegisters = 16;
#else
constexpr int kWidth = 4, kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef std::int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef std::uint32_t UintVec __attribute__((vector_size(4 * kWidth)));
typedef std::uint16_t HalfVec __attribute__((vector_size(2 * kWidth)));

// A number as a type, for lambdas that need it at compile time.
template <int N>
struct Constant {
  static constexpr int value = N;
};

template <class To, class From>
EDLM_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

EDLM_INLINE Vec splat(float x) { return Vec{} + x; }

EDLM_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// Where a lane is NaN: the second operand, as the instruction has it.
EDLM_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
EDLM_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

EDLM_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

EDLM_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }

EDLM_INLINE UintVec widen(HalfVec half) {
#if defined(__AVX512F__)
  return bit_cast<UintVec>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(half)));
#else
  return __builtin_convertvector(half, UintVec);
#endif
}

EDLM_INLINE Vec load(const bf16* p) {
  HalfVec half;
  std::memcpy(&half, p, sizeof(half));
  return bit_cast<Vec>(widen(half) << 16);
}

// Round to nearest even; NaN becomes a quiet NaN.
EDLM_INLINE HalfVec round_bf16(Vec v) {
#if defined(__AVX512BF16__)
  return bit_cast<HalfVec>(_mm512_cvtneps_pbh(v));
#else
  const UintVec bits = bit_cast<UintVec>(v);
  const UintVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(v == v ? rounded : (bits >> 16) | 0x40, HalfVec);
#endif
}

EDLM_INLINE void store(bf16* p, Vec v) {
  const HalfVec half = round_bf16(v);
  std::memcpy(p, &half, sizeof(half));
}

// The first n elements where fewer than kWidth are left; the other lanes are 0.
template <class T>
EDLM_INLINE Vec load(const T* p, std::int64_t n) {
  if (n >= kWidth) return load(p);
  T part[kWidth] = {};
  std::memcpy(part, p, n * sizeof(T));
  return load(part);
}

template <class T>
EDLM_INLINE void store(T* p, Vec v, std::int64_t n) {
  if (n >= kWidth) return store(p, v);
  T part[kWidth];
  store(part, v);
  std::memcpy(p, part, n * sizeof(T));
}

EDLM_INLINE bool any(IntVec mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bit_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(bit_cast<__m256>(mask)) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

// The lanes in one fixed tree: halves, quarters, ...
template <class Combine>
EDLM_INLINE float reduce(Vec v, Combine combine) {
  typedef float Quarter __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  const __m256 half = combine(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const Quarter q = combine(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
  const Quarter q = combine(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
#else
  const Quarter q = v;
#endif
  return combine(combine(q[0], q[2]), combine(q[1], q[3]));
}

EDLM_INLINE float reduce_add(Vec v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}

EDLM_INLINE float reduce_max(Vec v) {
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

// e^x to about 2 ulp for x <= 88, exactly 0 below -87.3, NaN for NaN; polynomial of Cephes' expf.
EDLM_INLINE Vec exp(Vec x) {
  const Vec magic = splat(0x1.8p23f); // adding it rounds to an integer
  const Vec n = fma(x, splat(1.44269504f), magic) - magic;
  const Vec r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const UintVec exponent = bit_cast<UintVec>(__builtin_convertvector(n, IntVec)) << 23; // far below 0 it wraps, unused
  const Vec scaled = bit_cast<Vec>(bit_cast<UintVec>(p) + exponent);
  return x < -87.3f ? Vec{} : (x == x ? scaled : x);
}

// Dot products go four bytes ("a unit": one float, or two neighbouring bf16) per lane at a time.
template <class T>
constexpr int kPerUnit = 4 / sizeof(T);

template <class T>
struct Units;

template <>
struct Units<float> {
  Vec v;
};

#if defined(__AVX512BF16__)
template <>
struct Units<bf16> {
  __m512bh v;
};
#else
template <>
struct Units<bf16> {
  Vec even, odd;
};
#endif

template <class T>
EDLM_INLINE Units<T> units_of(UintVec bits);

template <>
EDLM_INLINE Units<float> units_of<float>(UintVec bits) {
  return {bit_cast<Vec>(bits)};
}

template <>
EDLM_INLINE Units<bf16> units_of<bf16>(UintVec bits) {
#if defined(__AVX512BF16__)
  return {bit_cast<__m512bh>(bits)};
#else
  return {bit_cast<Vec>(bits << 16), bit_cast<Vec>(bits & 0xffff0000u)};
#endif
}

// kWidth units from memory, or one unit in all lanes.
template <class T>
EDLM_INLINE Units<T> load_units(const void* p) {
  UintVec bits;
  std::memcpy(&bits, p, sizeof(bits));
  return units_of<T>(bits);
}

template <class T>
EDLM_INLINE Units<T> load_units(const T* p, std::int64_t elements) {
  T part[kWidth * kPerUnit<T>] = {};
  std::memcpy(part, p, elements * sizeof(T));
  return load_units<T>(part);
}

template <class T>
EDLM_INLINE Units<T> splat_unit(const void* p) {
  std::uint32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return units_of<T>(UintVec{} + bits);
}

// Four bytes: what a lane multiplies in int8 products. The left operand holds unsigned bytes, of which 128 means zero,
// the right one signed bytes within +-127.
template <>
struct Units<std::int8_t> {
  UintVec bits;
};

template <>
EDLM_INLINE Units<std::int8_t> units_of<std::int8_t>(UintVec bits) {
  return {bits};
}

EDLM_INLINE IntVec load(const std::int32_t* p) {
  IntVec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

EDLM_INLINE void store(std::int32_t* p, IntVec v) { std::memcpy(p, &v, sizeof(v)); }

// What a lane's sum of products is.
template <class T>
struct SumOf {
  using vec = Vec;
  using lane = float;
};

template <>
struct SumOf<std::int8_t> {
  using vec = IntVec;
  using lane = std::int32_t;
};

// What dot() takes the zero of the left int8 operand to be: with VNNI 0, as the instruction has it, and 128 times the
// right operand's sum is in the result.
#if defined(__AVX512VNNI__)
constexpr std::int32_t kIntZero = 0;
#else
constexpr std::int32_t kIntZero = 128;
#endif

EDLM_INLINE IntVec dot(IntVec sum, Units<std::int8_t> a, Units<std::int8_t> b) {
#if defined(__AVX512VNNI__)
  return bit_cast<IntVec>(_mm512_dpbusd_epi32(bit_cast<__m512i>(sum), bit_cast<__m512i>(a.bits),
                                              bit_cast<__m512i>(b.bits)));
#elif defined(__AVX512F__)
  const __m512i signed_a = bit_cast<__m512i>(a.bits ^ 0x80808080u), w = bit_cast<__m512i>(b.bits);
  const __m512i flipped = _mm512_mask_sub_epi8(signed_a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), signed_a);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), flipped); // within 2 * 127 * 127: never saturates
  return sum + bit_cast<IntVec>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__)
  const __m256i signed_a = bit_cast<__m256i>(a.bits ^ 0x80808080u), w = bit_cast<__m256i>(b.bits);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(signed_a, w));
  return sum + bit_cast<IntVec>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
  const IntVec w = bit_cast<IntVec>(b.bits);
  for (int byte = 0; byte < 4; ++byte)
    sum += (bit_cast<IntVec>((a.bits >> 8 * byte) & 0xffu) - 128) * (w << (24 - 8 * byte) >> 24);
  return sum;
#endif
}

EDLM_INLINE Vec dot(Vec sum, Units<float> a, Units<float> b) { return fma(a.v, b.v, sum); }

EDLM_INLINE Vec dot(Vec sum, Units<bf16> a, Units<bf16> b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, a.v, b.v);
#else
  return fma(a.even, b.even, fma(a.odd, b.odd, sum));
#endif
}

} // namespace edlm::cpu::EDLM_ISA
