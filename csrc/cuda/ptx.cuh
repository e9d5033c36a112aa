// The only inline assembly, as thin functions. host_sim/ptx.h holds functions of the same names for a CPU.
#pragma once

#if defined(EDLM_HOST_SIM)
#include "../host_sim/ptx.h"
#else

#include <cuda_runtime.h>

#include <cstdint>

#include "../params.h"

namespace edlm::cuda {

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

template <class V>
__device__ __forceinline__ V shuffle(V value, int source) {
  return __shfl_sync(kAllLanes, value, source);
}
template <class V>
__device__ __forceinline__ V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
// From the lane `delta` below; lanes without one get their own value.
template <class V>
__device__ __forceinline__ V shuffle_up(V value, int delta) {
  return __shfl_up_sync(kAllLanes, value, delta);
}

// Memory that the host looks at while a kernel runs: what was written before the fence is there before what is written
// after it; loads and stores are not kept in a cache.
__device__ __forceinline__ void fence_system() { __threadfence_system(); }
__device__ __forceinline__ void store_system(std::int32_t* to, std::int32_t value) {
  asm volatile("st.relaxed.sys.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ std::int32_t load_system(const std::int32_t* from) {
  std::int32_t value;
  asm volatile("ld.relaxed.sys.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Dynamic shared memory of the launch, aligned to 128 bytes.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char edlm_shared[];
  return edlm_shared;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, past the registers and the first cache; zeros where not valid, and then
// nothing is read. The bytes are there after copy_wait, and for other threads after a barrier that follows it.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `kPending` of this thread's committed groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements. Lane i gives the address of row i % 8 of matrix i / 8; it gets of each
// matrix the elements (i / 4, 2 (i % 4)) and the next one, or of the transposed matrix.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes of memory that nobody writes while the kernel runs, read once: they stay out of the first cache.
__device__ __forceinline__ void load_streaming(std::uint32_t (&r)[4], const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "l"(from));
}

// c [16, 8] += a [16, 16] b [16, 8]. With g = lane / 4 and t = lane % 4, a lane holds c at rows g and g + 8, columns
// 2t and 2t + 1; a at those rows, columns 2t, 2t + 1 and the same + 8; b at rows 2t, 2t + 1 and the same + 8, column g.
__device__ __forceinline__ void mma(bf16, float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(f16, float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for bytes, a [16, 32] and b [32, 8]: a lane has four neighbouring bytes where it has two 16-bit elements
// above, so a register holds the same bytes of a row.
__device__ __forceinline__ void mma(std::int8_t, std::int32_t (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four e4m3 numbers as f16, two by two.
__device__ __forceinline__ void widen(std::uint32_t& low, std::uint32_t& high, std::uint32_t bytes) {
#if __CUDA_ARCH__ >= 890
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }"
      : "=r"(low), "=r"(high)
      : "r"(bytes));
#endif
}

// What has e4m3 in it needs code for this architecture or later; launches check it (launch.cuh), older code stops.
constexpr int kE4m3Architecture = 89;

// 9.x, 10.x and 11.x have no such tensor cores behind mma.sync: the compiler would widen to f16 as well, but in an order
// that needs more registers than there are. The products are exact in either way.
__device__ __forceinline__ void mma(e4m3, float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
#if __CUDA_ARCH__ < 890
  __trap();
#elif __CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  std::uint32_t first[4], second[4], b[4]; // any order of the inputs will do, if it is the same on both sides
  widen(first[0], first[2], a[0]);
  widen(first[1], first[3], a[1]);
  widen(second[0], second[2], a[2]);
  widen(second[1], second[3], a[3]);
  widen(b[0], b[1], b0);
  widen(b[2], b[3], b1);
  mma(f16{}, c, first, b[0], b[1]);
  mma(f16{}, c, second, b[2], b[3]);
#endif
}

// 2^x to about 2 ulp; 0 for -inf.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(static_cast<std::uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float to_float(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// To nearest, ties to even.
__device__ __forceinline__ void round_to(float& out, float x) { out = x; }
__device__ __forceinline__ void round_to(bf16& out, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
__device__ __forceinline__ void round_to(f16& out, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }

// Beyond +-448: that.
__device__ __forceinline__ void round_to(e4m3& out, float x) {
#if __CUDA_ARCH__ >= 890
  std::uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  out.bits = static_cast<std::uint8_t>(pair);
#else
  __trap();
#endif
}

// Each rounded, never contracted into one fused operation.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float rounded_sum(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ std::uint32_t float_bits(float x) { return __float_as_uint(x); }

// Two rounded numbers, the first in the low half.
__device__ __forceinline__ std::uint32_t pack(bf16, float low, float high) {
  std::uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
__device__ __forceinline__ std::uint32_t pack(f16, float low, float high) {
  std::uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

// Programmatic dependent launch (sm_90 and up; before that kernels run one after the other). A kernel waits first of
// all, also in blocks without work: its own end then implies the end of everything before it.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

} // namespace edlm::cuda

#endif
