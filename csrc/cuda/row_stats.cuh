// Statistics of rows of logits that a matrix product left in memory, read once. Grid of the first kernel: (parts of the
// vocabulary, rows); the second merges the parts, filters and samples where asked, and writes the results.
#pragma once

#include "launch.cuh"
#include "row_stats_filter.cuh"

namespace edlm::cuda {

constexpr int kPartThreads = 256;
constexpr int kLoadsAhead = 4; // per thread

// N logits of the ids from `first` on, -inf from `end` on. kWide: rows allow access to 16 bytes at once.
template <class T, int N, bool kWide>
__device__ __forceinline__ Elements<T, N> load_logits(const T* row, std::int32_t first, std::int32_t end) {
  Elements<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) round_to(out.at[i], -INFINITY);
  if constexpr (kWide) {
    if (first < end) out = load_elements<N>(row + first);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (first + i < end) out.at[i] = row[first + i];
  }
  return out;
}

template <class T, bool kWide>
__global__ void __launch_bounds__(kPartThreads) row_stats_kernel(const RowStatsParams p) {
  constexpr int N = kPerAccess<T>;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t index = blockIdx.y;
  const int slot = p.slots[index];
  if (slot < 0) return;
  const T* row = static_cast<const T*>(p.all_logits) + index * p.vocab;
  const auto vocab = static_cast<std::int32_t>(p.vocab);
  const auto size = static_cast<std::int32_t>(cuda_part_ids(p.vocab, p.parts));
  const auto begin = static_cast<std::int32_t>(blockIdx.x) * size;
  const std::int32_t end = begin + size < vocab ? begin + size : vocab;
  const SlotFields& settings = slot_fields(p.state, slot);
  const bool sampled = settings.temperature > 0 && !filtered(p, slot);
  const Sampling sampling{settings.temperature, {settings.seed[0], settings.seed[1]}, p.positions[index], settings.step};

  LogitStats stats = no_stats();
  for (std::int32_t at = begin; at < end; at += kPartThreads * N * kLoadsAhead) {
    Elements<T, N> ahead[kLoadsAhead];
    const std::int32_t first = at + static_cast<std::int32_t>(threadIdx.x) * N;
#pragma unroll
    for (int j = 0; j < kLoadsAhead; ++j) ahead[j] = load_logits<T, N, kWide>(row, first + j * kPartThreads * N, end);
#pragma unroll
    for (int j = 0; j < kLoadsAhead; ++j) {
      const std::int32_t id = first + j * kPartThreads * N;
      float z[N];
#pragma unroll
      for (int i = 0; i < N; ++i) z[i] = id + i == p.forbidden_id ? -INFINITY : to_float(ahead[j].at[i]);
      absorb(stats, z, id);
      if (sampled) sample(stats, z, id, sampling);
    }
  }
  stats = merge_block(stats, reinterpret_cast<LogitStats*>(shared_memory()));
  if (threadIdx.x == 0) p.partial[index * p.parts + blockIdx.x] = stats;
}

// Shared: the merged statistics, then FilterScratch.
template <class T>
__global__ void __launch_bounds__(kFilterThreads) row_stats_finish_kernel(const RowStatsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t index = blockIdx.x;
  const int slot = p.slots[index];
  if (slot < 0) return;
  auto& merged = *reinterpret_cast<LogitStats*>(shared_memory());
  auto& scratch = *reinterpret_cast<FilterScratch*>(shared_memory() + 64);
  LogitStats stats = no_stats();
  if (threadIdx.x < kLanes) {
    for (std::int64_t part = threadIdx.x; part < p.parts; part += kLanes) merge(stats, p.partial[index * p.parts + part]);
    stats = merge_lanes(stats);
    if (threadIdx.x == 0) merged = stats;
  }
  sync_block();
  if (filtered(p, slot) && !merged.bad && merged.id1 >= 0) {
    const LogitStats best = sample_filtered<T>(p, index, slot, merged.z1, scratch);
    stats.best = best.best;
    stats.z_best = best.z_best;
    stats.id_best = best.id_best;
  }
  if (threadIdx.x != 0) return;
  if (!(slot_fields(p.state, slot).temperature > 0)) {
    stats.z_best = stats.z1;
    stats.id_best = stats.id1;
  }
  write_row(stats, p.ids + index * IdColumn::count, p.stats + index * StatColumn::count);
}

// Of p the fields that describe hidden and weight are not used; parts = cuda_vocab_parts().
template <class T>
void row_stats_as(const RowStatsParams& p, Stream stream) {
  const bool wide = p.vocab % kPerAccess<T> == 0;
  launch("row_stats", wide ? row_stats_kernel<T, true> : row_stats_kernel<T, false>,
         dim3{static_cast<unsigned>(p.parts), static_cast<unsigned>(p.rows)}, kPartThreads,
         kPartThreads / kLanes * sizeof(LogitStats), stream, p);
  launch("row_stats (finish)", row_stats_finish_kernel<T>, dim3{static_cast<unsigned>(p.rows)}, kFilterThreads,
         64 + sizeof(FilterScratch), stream, p);
}

inline void row_stats(const RowStatsParams& p, Stream stream) {
  if (p.dtype == DType::f32) row_stats_as<float>(p, stream);
  if (p.dtype == DType::bf16) row_stats_as<bf16>(p, stream);
  if (p.dtype == DType::f16) row_stats_as<f16>(p, stream);
}

} // namespace edlm::cuda
