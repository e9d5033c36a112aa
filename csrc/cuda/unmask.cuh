// A block per slot. Every thread looks at its positions against all rows of the slot's statistics, which lie in shared
// memory: at most some hundred.
#pragma once

#include "../plan_cuda.h"
#include "launch.cuh"
#include "vector.cuh"

namespace edlm::cuda {

constexpr int kUnmaskThreads = 128;

// As in cpu/unmask.cpp: of `left` masked positions the fixed schedule commits floor(m / n), and one more in the first
// m mod n steps.
__device__ __forceinline__ int scheduled(const UnmaskParams& p, int slot, int left) {
  const int m = p.block_length[slot], n = p.steps_per_block[slot] > 1 ? p.steps_per_block[slot] : 1;
  const int count = m / n + (p.step[slot] < m % n ? 1 : 0);
  return count < 1 ? 1 : count > left ? left : count;
}

__device__ __forceinline__ int above_threshold(const UnmaskParams& p, int slot, const float* confidence, int left) {
  if (p.steps_per_block[slot] > 0 && p.step[slot] >= p.steps_per_block[slot] - 1) return left;
  int count = 0;
  for (int row = 0; row < left; ++row) count += confidence[row] >= p.threshold[slot] ? 1 : 0;
  return count < 1 ? 1 : count;
}

// Rows with a higher confidence, or the same and a lower position.
__device__ __forceinline__ int rank_of(const float* confidence, int row, int left) {
  int before = 0;
  for (int other = 0; other < left; ++other)
    before += confidence[other] > confidence[row] || (confidence[other] == confidence[row] && other < row) ? 1 : 0;
  return before;
}

// Shared: confidence [max_block], ids [max_block], masked [max_block].
__global__ void __launch_bounds__(kUnmaskThreads) unmask_kernel(const UnmaskParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int slot = static_cast<int>(blockIdx.x), block = static_cast<int>(p.max_block);
  const int first = p.first_row[slot];
  if (first < 0) return;
  auto* confidence = reinterpret_cast<float*>(shared_memory());
  auto* ids = reinterpret_cast<std::int32_t*>(confidence + block);
  auto* masked = reinterpret_cast<std::uint8_t*>(ids + block);
  const std::int64_t base = static_cast<std::int64_t>(slot) * block;
  const int left = p.num_masked[slot], step = p.step[slot];
  for (int i = static_cast<int>(threadIdx.x); i < block; i += kUnmaskThreads) {
    masked[i] = p.masked[base + i];
    if (i >= left) continue;
    const std::int64_t row = static_cast<std::int64_t>(first) + i;
    confidence[i] = p.stats[row * 5 + 4];
    ids[i] = p.ids[row * 2 + 1];
  }
  sync_block();
  bool bad = false;
  for (int row = 0; row < left; ++row) bad |= ids[row] < 0 || confidence[row] != confidence[row];
  int k = 0;
  if (left > 0 && !bad) {
    const float threshold = p.threshold[slot];
    k = threshold != threshold ? scheduled(p, slot, left) : above_threshold(p, slot, confidence, left);
  }
  sync_block(); // every thread has read the slot's state
  if (threadIdx.x == 0) {
    p.status[slot] = bad ? -1 : k == left ? 1 : 0;
    if (!bad) {
      p.num_masked[slot] = left - k;
      p.step[slot] = step + 1;
    }
  }
  if (bad) return;
  for (int i = static_cast<int>(threadIdx.x); i < block; i += kUnmaskThreads) {
    if (!masked[i]) continue;
    int row = 0;
    for (int j = 0; j < i; ++j) row += masked[j] ? 1 : 0;
    if (rank_of(confidence, row, left) >= k) continue;
    p.tokens[base + i] = ids[row];
    p.confidence[base + i] = confidence[row];
    p.commit_step[base + i] = step;
    p.masked[base + i] = 0;
  }
}

inline void unmask(const UnmaskParams& p, Stream stream) {
  launch("unmask", unmask_kernel, dim3{static_cast<unsigned>(p.slots)}, kUnmaskThreads,
         static_cast<std::size_t>(p.max_block) * 9, stream, p);
}

} // namespace edlm::cuda
