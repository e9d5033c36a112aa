// The statistics of a thread's logits and their merging. The same state fits the epilogue of a matrix product.
#pragma once

#include "../plan_cuda.h"
#include "../random.h"
#include "../stats.h"
#include "vector.cuh"

namespace edlm::cuda {

__device__ __forceinline__ LogitStats no_stats() {
  return {-INFINITY, -INFINITY, 0, 0, -INFINITY, -INFINITY, -1, -1, 0};
}

// Sums to a new, larger maximum: see stats.h.
__device__ __forceinline__ void rescale(float& sum, float& weighted, float shift) {
  if (!(sum > 0)) return;
  const float factor = expf(shift);
  weighted = (weighted + shift * sum) * factor;
  sum *= factor;
}

// N logits of the ids from `first` on, all above those absorbed before.
template <int N>
__device__ __forceinline__ void absorb(LogitStats& stats, const float (&z)[N], std::int32_t first) {
  const float before = stats.z1;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    stats.bad |= z[i] < INFINITY ? 0 : 1;
    stats.z2 = fmaxf(stats.z2, fminf(z[i], stats.z1));
    stats.id1 = z[i] > stats.z1 ? first + i : stats.id1;
    stats.z1 = fmaxf(stats.z1, z[i]);
  }
  if (stats.z1 == -INFINITY) return;
  if (stats.z1 > before) rescale(stats.sum, stats.weighted, before - stats.z1);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float shifted = z[i] - stats.z1, e = fast_exp2(shifted * 1.44269504f);
    stats.sum += e;
    stats.weighted += e * fmaxf(shifted, -200.0f); // where e is 0 no infinity may enter
  }
}

struct Sampling {
  float temperature;
  std::int32_t seed[2];
  std::int32_t position, step;
};

__device__ __forceinline__ void offer(LogitStats& stats, float z, float value, std::int32_t id) {
  if (!(value > stats.best)) return;
  stats.best = value;
  stats.z_best = z;
  stats.id_best = id;
}

// The largest z / temperature + gumbel of N logits; `first` is a multiple of 4.
template <int N>
__device__ __forceinline__ void sample(LogitStats& stats, const float (&z)[N], std::int32_t first, const Sampling& s) {
#pragma unroll
  for (int quad = 0; quad < N; quad += 4) {
    const float largest = fmaxf(fmaxf(z[quad], z[quad + 1]), fmaxf(z[quad + 2], z[quad + 3]));
    if (!(largest / s.temperature + kMaxGumbel > stats.best)) continue;
    const PhiloxBlock random = philox_ids(static_cast<std::uint32_t>(first + quad) / 4, s.seed, s.position, s.step);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      offer(stats, z[quad + i], z[quad + i] / s.temperature + gumbel(random.word[i]), first + quad + i);
  }
}

// In any order of the ids: ties go to the lowest one.
__device__ __forceinline__ void merge(LogitStats& a, const LogitStats& b) {
  a.bad |= b.bad;
  if (b.best > a.best || (b.best == a.best && b.id_best < a.id_best)) {
    a.best = b.best;
    a.z_best = b.z_best;
    a.id_best = b.id_best;
  }
  if (b.z1 == -INFINITY) return;
  const bool second = b.z1 > a.z1 || (b.z1 == a.z1 && b.id1 < a.id1);
  LogitStats high = second ? b : a;
  float sum = second ? a.sum : b.sum, weighted = second ? a.weighted : b.weighted;
  const float low = second ? a.z1 : b.z1;
  if (low > -INFINITY) rescale(sum, weighted, low - high.z1);
  a.z2 = fmaxf(high.z2, low);
  a.z1 = high.z1;
  a.id1 = high.id1;
  a.sum = high.sum + sum;
  a.weighted = high.weighted + weighted;
}

__device__ __forceinline__ LogitStats merge_lanes(LogitStats stats) {
  for (int mask = 1; mask < kLanes; mask *= 2) {
    const LogitStats other = {shuffle_xor(stats.z1, mask),       shuffle_xor(stats.z2, mask),
                              shuffle_xor(stats.sum, mask),      shuffle_xor(stats.weighted, mask),
                              shuffle_xor(stats.best, mask),     shuffle_xor(stats.z_best, mask),
                              shuffle_xor(stats.id1, mask),      shuffle_xor(stats.id_best, mask),
                              shuffle_xor(stats.bad, mask)};
    merge(stats, other);
  }
  return stats;
}

// The result is right in thread 0. scratch: one LogitStats per warp.
__device__ __forceinline__ LogitStats merge_block(LogitStats stats, LogitStats* scratch) {
  const int warps = static_cast<int>(blockDim.x) / kLanes;
  stats = merge_lanes(stats);
  if (threadIdx.x % kLanes == 0) scratch[threadIdx.x / kLanes] = stats;
  sync_block();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < warps; ++warp) merge(stats, scratch[warp]);
  return stats;
}

// Whether top-k or top-p leaves ids out.
__device__ __forceinline__ bool filtered(const RowStatsParams& p, int slot) {
  const SlotFields& s = slot_fields(p.state, slot);
  return s.temperature > 0 && ((s.top_k > 0 && s.top_k < p.vocab) || s.top_p < 1);
}

template <class T>
__device__ __forceinline__ float logit(const RowStatsParams& p, const T* row, std::int32_t id) {
  return id == p.forbidden_id ? -INFINITY : to_float(row[id]);
}

} // namespace edlm::cuda
