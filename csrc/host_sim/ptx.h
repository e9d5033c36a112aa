// The host twin of cuda/ptx.cuh: the same functions, for threads of a simulated machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../params.h"
#include "machine.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace edlm::cuda {

using dim3 = host_sim::Index;
using host_sim::kLanes;
using host_sim::machine;

#define threadIdx (::edlm::host_sim::machine.thread_index)
#define blockIdx (::edlm::host_sim::machine.block_index)
#define blockDim (::edlm::host_sim::machine.block)
#define gridDim (::edlm::host_sim::machine.grid)

inline void sync_block() { machine.sync_block(); }
inline void sync_warp() {
  machine.exchange([](void* const*) {}, nullptr);
}

template <class V>
struct ShuffleOperand {
  V value;
  int source; // out of range: the lane's own value
  V result;
};

template <class V>
inline V shuffle_from(V value, int source) {
  ShuffleOperand<V> own{value, source, {}};
  machine.exchange(
      [](void* const* operands) {
        for (int lane = 0; lane < kLanes; ++lane) {
          auto* own = static_cast<ShuffleOperand<V>*>(operands[lane]);
          const int from = own->source < 0 || own->source >= kLanes ? lane : own->source;
          own->result = static_cast<ShuffleOperand<V>*>(operands[from])->value;
        }
      },
      &own);
  return own.result;
}

inline int lane_index() { return static_cast<int>(machine.thread_index.x % kLanes); }

template <class V>
inline V shuffle(V value, int source) {
  return shuffle_from(value, source % kLanes);
}
template <class V>
inline V shuffle_xor(V value, int mask) {
  return shuffle_from(value, lane_index() ^ mask);
}
template <class V>
inline V shuffle_up(V value, int delta) {
  return shuffle_from(value, lane_index() - delta);
}

inline void fence_system() {}
inline void store_system(std::int32_t* to, std::int32_t value) { *to = value; }
inline std::int32_t load_system(const std::int32_t* from) { return *from; }

inline char* shared_memory() { return machine.shared_memory(); }

inline void copy_async(void* shared, const void* global, bool valid) { machine.copy_async(shared, global, valid); }
inline void copy_commit() { machine.copy_commit(); }
template <int kPending>
inline void copy_wait() {
  machine.copy_wait(kPending);
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline float to_float(f16 x) {
  _Float16 half;
  std::memcpy(&half, &x, 2);
  return static_cast<float>(half);
}

inline float to_float(e4m3 x) {
  const int exponent = x.bits >> 3 & 15, mantissa = x.bits & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  const float size = exponent ? std::ldexp(8.0f + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
  return x.bits & 0x80 ? -size : size;
}

template <class Sum, class T>
inline Sum factor(T x) {
  return to_float(x);
}
template <>
inline std::int32_t factor<std::int32_t>(std::int8_t x) {
  return x;
}

inline void round_to(float& out, float x) { out = x; }
inline void round_to(bf16& out, float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  out.bits = std::isnan(x) ? 0x7fff : static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void round_to(f16& out, float x) {
  const auto half = static_cast<_Float16>(x);
  std::memcpy(&out, &half, 2);
}

// The steps of numbers below 2^(e + 1) are 2^(e - 3), but not below 2^-9.
inline void round_to(e4m3& out, float x) {
  const std::uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) {
    out.bits = sign | 0x7f;
    return;
  }
  const float size = std::fabs(x);
  const int exponent = std::max(size >= 448 ? 8 : size > 0 ? std::ilogb(size) : -6, -6);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(std::min(size, 448.0f), 3 - exponent)));
  out.bits = static_cast<std::uint8_t>(sign | (steps + 8 * (exponent + 6))); // eight steps are the next exponent
}

inline float rounded_product(float a, float b) { return a * b; }
inline float rounded_sum(float a, float b) { return a + b; }
inline std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

template <class T>
inline std::uint32_t pack(T, float low, float high) {
  T a, b;
  round_to(a, low);
  round_to(b, high);
  return a.bits | static_cast<std::uint32_t>(b.bits) << 16;
}

inline void load_streaming(std::uint32_t (&r)[4], const void* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % 16) host_sim::fail("a load of 16 bytes that are not aligned");
  std::memcpy(r, from, 16);
}

constexpr int kE4m3Architecture = 89;

struct LoadOperand {
  std::uint32_t* r;
  const std::uint16_t* row;
};

template <bool kTransposed>
inline void load_matrices_as(std::uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16) host_sim::fail("a matrix row that is not aligned to 16 bytes");
  LoadOperand own{r, static_cast<const std::uint16_t*>(row)};
  machine.exchange(
      [](void* const* operands) {
        for (int lane = 0; lane < kLanes; ++lane)
          for (int matrix = 0; matrix < 4; ++matrix) {
            const auto element = [&](int i, int j) -> std::uint32_t {
              return static_cast<LoadOperand*>(operands[matrix * 8 + (kTransposed ? j : i)])->row[kTransposed ? i : j];
            };
            const int i = lane / 4, j = 2 * (lane % 4);
            static_cast<LoadOperand*>(operands[lane])->r[matrix] = element(i, j) | element(i, j + 1) << 16;
          }
      },
      &own);
}
inline void load_matrices(std::uint32_t (&r)[4], const void* row) { load_matrices_as<false>(r, row); }
inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) { load_matrices_as<true>(r, row); }

template <class Sum>
struct MmaOperand {
  Sum* c;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

// The element i of four bytes.
template <class T>
inline T element_of(std::uint32_t bytes, int i) {
  T out;
  std::memcpy(&out, reinterpret_cast<const char*>(&bytes) + i * sizeof(T), sizeof(T));
  return out;
}

template <class T, class Sum>
inline void mma(T, Sum (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  constexpr int N = 4 / sizeof(T), K = 8 * N; // elements of a register, of a row of a
  MmaOperand<Sum> own{c, a, {b0, b1}};
  machine.exchange(
      [](void* const* operands) {
        Sum left[16][K], right[K][8];
        for (int lane = 0; lane < kLanes; ++lane) {
          const auto& own = *static_cast<MmaOperand<Sum>*>(operands[lane]);
          const int g = lane / 4, t = lane % 4;
          for (int i = 0; i < N; ++i) {
            for (int r = 0; r < 4; ++r)
              left[g + 8 * (r % 2)][N * t + i + K / 2 * (r / 2)] = factor<Sum>(element_of<T>(own.a[r], i));
            for (int r = 0; r < 2; ++r) right[N * t + i + K / 2 * r][g] = factor<Sum>(element_of<T>(own.b[r], i));
          }
        }
        for (int lane = 0; lane < kLanes; ++lane)
          for (int i = 0; i < 4; ++i) {
            Sum sum = 0;
            for (int k = 0; k < K; ++k) sum += left[lane / 4 + 8 * (i / 2)][k] * right[k][2 * (lane % 4) + i % 2];
            static_cast<MmaOperand<Sum>*>(operands[lane])->c[i] += sum;
          }
      },
      &own);
}

inline float fast_exp2(float x) { return std::exp2(x); }

inline void wait_for_previous_kernel() { machine.previous_kernel_waited_for(); }
inline void let_next_kernel_start() {}

} // namespace edlm::cuda
