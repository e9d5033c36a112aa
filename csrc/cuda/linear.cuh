// Linear layers of few rows, whose time is that of reading the weight once. Weights are on the M side of mma(), rows on
// the N side. A block of threads has a group of 64 outputs, a tile of rows, and one of `splits` parts of the steps along
// the inputs, which its warps share; their sums meet in shared memory, those of the splits in linear_combine.cuh. Which
// steps a sum has, and in which order, does not depend on the rows.
#pragma once

#include "linear_combine.cuh"

namespace edlm::cuda {

constexpr int kLinearThreads = kLinearWarps * kLanes;
constexpr int kFragments = kStepWords / (kLanes * 4); // of a step: 4 panels of 16 outputs, two halves each
constexpr int kPanels = kFragments / 2;
constexpr int kSumStride = kGroupOutputs + 4; // of a row of sums in shared memory: no bank conflicts

// Tensor cores since Hopper take e4m3 from mma.sync as f16, into which it is turned in registers: fewer are left.
template <class T>
constexpr bool kWidened = std::is_same_v<T, e4m3>;
template <class T>
constexpr int kMaxRows = kWidened<T> ? 32 : 64;

// Steps whose weights are in registers, or on their way, while a step is multiplied, and blocks of threads on a
// multiprocessor: as many as leave room for the sums.
template <class T, int kRows>
constexpr int kStepsAhead = kRows <= (kWidened<T> ? 16 : 32) ? 2 : 1;
template <class T, int kRows>
constexpr int kResident = kRows <= (kWidened<T> ? 8 : 16) ? 2 : 1;

struct Step {
  std::uint32_t at[kFragments][4];
};

__device__ __forceinline__ void load_step(Step& step, const std::uint32_t* group, int index) {
  const std::uint32_t* from = group + static_cast<std::int64_t>(index) * kStepWords + threadIdx.x % kLanes * 4;
#pragma unroll
  for (int i = 0; i < kFragments; ++i) load_streaming(step.at[i], from + i * kLanes * 4);
}

// The 16 bytes at `at` of a row of x of `bytes` bytes; zeros behind its end. kWide: rows allow access to 16 bytes at once,
// else to four.
template <class T, bool kWide>
__device__ __forceinline__ void load_inputs(std::uint32_t (&b)[4], const char* row, int at, int bytes) {
  Elements<std::uint32_t, 4> held{};
  const auto* words = reinterpret_cast<const std::uint32_t*>(row + at);
  if constexpr (kWide) {
    if (at < bytes) held = load_elements<4>(words);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (at + 4 * i < bytes) held.at[i] = words[i];
  }
  constexpr std::uint32_t zero = std::is_same_v<T, std::int8_t> ? 0x80808080u : 0u; // bytes of 128 are int8 zeros
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i] = held.at[i] ^ zero;
}

// sums [64, kRows] += the weights of a step . its part of the rows.
template <class T, int kRows, bool kWide>
__device__ __forceinline__ void multiply_step(SumOf<T> (&sums)[kPanels][kRows / 8][4], const Step& step, const char* x,
                                              int rows, int row_bytes, int index) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, g = lane / 4;
  const int at = index * static_cast<int>(kStepBytes) + lane % 4 * 16;
  std::uint32_t b[kRows / 8][4];
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
    const int row = 8 * j + g < rows ? 8 * j + g : rows - 1; // what is beyond counts for sums that nobody takes
    load_inputs<T, kWide>(b[j], x + row * row_bytes, at, row_bytes);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) // outermost: no product waits for the one before it
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel)
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j)
        mma(T{}, sums[panel][j], step.at[2 * panel + half], b[j][2 * half], b[j][2 * half + 1]);
}

// The warps' sums, added in their order, kChunk rows at a time.
template <class T, int kRows>
__device__ __forceinline__ void reduce_warps(const LinearParams& p, const SumOf<T> (&sums)[kPanels][kRows / 8][4],
                                             std::int64_t first_row) {
  using Sum = SumOf<T>;
  constexpr int kChunk = kRows < 16 ? kRows : 16;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, g = lane / 4, t = lane % 4;
  auto* shared = reinterpret_cast<Sum*>(shared_memory()); // [warps, kChunk, kSumStride]
  Sum* own = shared + static_cast<int>(threadIdx.x) / kLanes * kChunk * kSumStride;
#pragma unroll
  for (int chunk = 0; chunk < kRows; chunk += kChunk) {
    if (chunk > 0) sync_block(); // nobody reads the chunk before any more
#pragma unroll
    for (int j = 0; j < kChunk / 8; ++j)
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          own[(8 * j + 2 * t + i % 2) * kSumStride + 16 * panel + g + 8 * (i / 2)] = sums[panel][chunk / 8 + j][i];
    sync_block();
    const int item = static_cast<int>(threadIdx.x);
    if (item >= kChunk * kQuads) continue;
    const Sum* from = shared + item / kQuads * kSumStride + item % kQuads * 4;
    auto total = load_elements<4>(from);
#pragma unroll
    for (int warp = 1; warp < kLinearWarps; ++warp) {
      const auto other = load_elements<4>(from + warp * kChunk * kSumStride);
#pragma unroll
      for (int i = 0; i < 4; ++i) total.at[i] += other.at[i];
    }
    write_sums<T>(p, first_row + chunk + item / kQuads, blockIdx.y, item % kQuads, total);
  }
}

// Grid: (tiles of rows, groups, splits): blocks that run together share a group's weights.
template <class T, int kRows, bool kWide>
__global__ void __launch_bounds__(kLinearThreads, kResident<T, kRows>) linear_kernel(const LinearParams p) {
  constexpr int kAhead = kStepsAhead<T, kRows>;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const auto steps = linear_steps(p.inputs, sizeof(T));
  const auto first = static_cast<int>(split_begin(blockIdx.z, p.splits, steps)) + warp;
  const auto end = static_cast<int>(split_begin(blockIdx.z + 1, p.splits, steps));
  const std::uint32_t* group = p.weight + blockIdx.y * group_words(p.inputs, sizeof(T));
  Step ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i)
    if (first + i * kLinearWarps < end) load_step(ahead[i], group, first + i * kLinearWarps);
  wait_for_previous_kernel(); // weights are constant, rows are not
  let_next_kernel_start();

  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kRows;
  const auto rows = static_cast<int>(p.rows - first_row < kRows ? p.rows - first_row : kRows);
  const auto row_bytes = static_cast<int>(p.inputs * sizeof(T));
  const char* x = static_cast<const char*>(p.x) + first_row * row_bytes;
  SumOf<T> sums[kPanels][kRows / 8][4] = {};
  for (int step = first; step < end; step += kAhead * kLinearWarps)
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int index = step + i * kLinearWarps;
      if (index >= end) break;
      multiply_step<T, kRows, kWide>(sums, ahead[i], x, rows, row_bytes, index);
      if (index + kAhead * kLinearWarps < end) load_step(ahead[i], group, index + kAhead * kLinearWarps);
    }
  reduce_warps<T, kRows>(p, sums, first_row);
}

template <class T, int kRows, bool kWide>
void linear_rows(const LinearParams& p, Stream stream) {
  if constexpr (std::is_same_v<T, e4m3>) check_e4m3("linear", linear_kernel<T, kRows, kWide>);
  const dim3 grid{static_cast<unsigned>(ceil_div(p.rows, kRows)), static_cast<unsigned>(linear_groups(p.outputs)),
                  static_cast<unsigned>(p.splits)};
  const std::size_t shared = kLinearWarps * (kRows < 16 ? kRows : 16) * kSumStride * 4;
  launch("linear", linear_kernel<T, kRows, kWide>, grid, kLinearThreads, shared, stream, p);
}

// T: what the weight consists of.
template <class T>
void linear_typed(const LinearParams& p, Stream stream) {
  if (p.rows == 0 || p.outputs == 0) return;
  if (linear_groups(p.outputs) > 65535) throw std::invalid_argument("linear: more outputs than a launch can have");
  const std::int64_t tile = linear_row_tile(p.rows);
  if (p.inputs * sizeof(T) % 16 != 0)
    linear_rows<T, 16, false>(p, stream);
  else if (tile == 8)
    linear_rows<T, 8, true>(p, stream);
  else if (tile == 16)
    linear_rows<T, 16, true>(p, stream);
  else if (tile == 32 || kMaxRows<T> == 32)
    linear_rows<T, 32, true>(p, stream);
  else
    linear_rows<T, kMaxRows<T>, true>(p, stream);
  if (p.splits > 1) linear_combine<T>(p, stream);
}

#if !defined(EDLM_HOST_SIM) // each has its own .cu: they take long to compile
extern template void linear_typed<bf16>(const LinearParams&, Stream);
extern template void linear_typed<f16>(const LinearParams&, Stream);
extern template void linear_typed<std::int8_t>(const LinearParams&, Stream);
extern template void linear_typed<e4m3>(const LinearParams&, Stream);
#endif

// p.splits are those of the plan.
inline void linear(const LinearParams& p, Stream stream) {
  if (p.x_dtype == DType::bf16) linear_typed<bf16>(p, stream);
  if (p.x_dtype == DType::f16) linear_typed<f16>(p, stream);
  if (p.x_dtype == DType::u8) linear_typed<std::int8_t>(p, stream);
  if (p.x_dtype == DType::e4m3) linear_typed<e4m3>(p, stream);
}

} // namespace edlm::cuda
