// Top-k and top-p of one row by a block, without sorting: a radix search for the last id that they leave, over keys that
// order the ids as a sort would. All sums are of integers, so their order does not matter.
#pragma once

#include "row_stats_state.cuh"

namespace edlm::cuda {

constexpr int kFilterThreads = 512;
constexpr int kDigits = 14; // of 4 bits: 32 of the logit, 24 of the id
using Weight = unsigned long long;

// Larger for a larger logit, then for a lower id.
__device__ __forceinline__ std::uint64_t order_key(float z, std::int32_t id) {
  const float zero_is_positive = z + 0.0f;
  std::uint32_t bits;
  memcpy(&bits, &zero_is_positive, 4);
  bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
  return static_cast<std::uint64_t>(bits) << 24 | (0xffffffu - static_cast<std::uint32_t>(id));
}

struct FilterScratch {
  Weight sums[16 * kFilterThreads]; // [digit, thread]
  Weight totals[16];
};

// Sums of every digit over the block, in totals.
__device__ __forceinline__ void total_digits(FilterScratch& scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  static_assert(kFilterThreads == 16 * kLanes);
  sync_block();
  Weight sum = 0;
  for (int i = lane; i < kFilterThreads; i += kLanes) sum += scratch.sums[warp * kFilterThreads + i];
  for (int mask = kLanes / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (lane == 0) scratch.totals[warp] = sum;
  sync_block();
}

// The largest key such that the ids with keys from it on weigh at least `target`; 0 if all together weigh less.
// weigh(z, key): the weight of an id.
template <class T, class Weigh>
__device__ __forceinline__ std::uint64_t search_key(const RowStatsParams& p, const T* row, Weight target,
                                                    const Weigh& weigh, FilterScratch& scratch) {
  std::uint64_t prefix = 0;
  Weight above = 0;
  for (int shift = 4 * (kDigits - 1); shift >= 0; shift -= 4) {
    for (int digit = 0; digit < 16; ++digit) scratch.sums[digit * kFilterThreads + threadIdx.x] = 0;
    for (std::int32_t id = static_cast<std::int32_t>(threadIdx.x); id < p.vocab; id += kFilterThreads) {
      const float z = logit(p, row, id);
      const std::uint64_t key = order_key(z, id);
      if (key >> shift >> 4 == prefix) scratch.sums[(key >> shift & 15) * kFilterThreads + threadIdx.x] += weigh(z, key);
    }
    total_digits(scratch);
    int digit = 15;
    while (digit >= 0 && above + scratch.totals[digit] < target) above += scratch.totals[digit--];
    if (digit < 0) return 0;
    prefix = prefix << 4 | static_cast<std::uint64_t>(digit);
  }
  return prefix;
}

// The key of the last id that top-k, then top-p leave. largest: the row's largest logit.
template <class T>
__device__ __forceinline__ std::uint64_t last_kept_key(const RowStatsParams& p, int slot, const T* row, float largest,
                                                       FilterScratch& scratch) {
  const SlotFields& settings = slot_fields(p.state, slot);
  const auto top_k = static_cast<std::int64_t>(settings.top_k);
  std::uint64_t last = 0;
  if (top_k > 0 && top_k < p.vocab)
    last = search_key(p, row, static_cast<Weight>(top_k), [](float, std::uint64_t) { return Weight{1}; }, scratch);
  if (!(settings.top_p < 1)) return last;
  const float temperature = settings.temperature;
  const auto mass = [=](float z, std::uint64_t key) { // in units of 2^-39 of the largest
    return key < last ? Weight{0} : static_cast<Weight>(expf((z - largest) / temperature) * 0x1p39f);
  };
  Weight total = 0;
  for (std::int32_t id = static_cast<std::int32_t>(threadIdx.x); id < p.vocab; id += kFilterThreads) {
    const float z = logit(p, row, id);
    total += mass(z, order_key(z, id));
  }
  sync_block(); // the totals have been read
  for (int digit = 0; digit < 16; ++digit) scratch.sums[digit * kFilterThreads + threadIdx.x] = digit ? 0 : total;
  total_digits(scratch);
  const double wanted = ceil(static_cast<double>(settings.top_p) * static_cast<double>(scratch.totals[0]));
  const std::uint64_t held = search_key(p, row, wanted < 1 ? Weight{1} : static_cast<Weight>(wanted), mass, scratch);
  return held > last ? held : last;
}

// The best sample of the ids that the filters leave, right in thread 0.
template <class T>
__device__ __forceinline__ LogitStats sample_filtered(const RowStatsParams& p, std::int64_t index, int slot,
                                                      float largest, FilterScratch& scratch) {
  const T* row = static_cast<const T*>(p.all_logits) + index * p.vocab;
  const std::uint64_t last = last_kept_key(p, slot, row, largest, scratch);
  const SlotFields& settings = slot_fields(p.state, slot);
  const float temperature = settings.temperature;
  LogitStats stats = no_stats();
  for (std::int32_t id = static_cast<std::int32_t>(threadIdx.x); id < p.vocab; id += kFilterThreads) {
    const float z = logit(p, row, id);
    if (order_key(z, id) < last || !(z / temperature + kMaxGumbel > stats.best)) continue;
    const auto quad = static_cast<std::uint32_t>(id) / 4;
    const PhiloxBlock random = philox_ids(quad, settings.seed, p.positions[index], settings.step);
    std::uint32_t word = random.word[0]; // no array that is indexed at run time
    word = id % 4 == 1 ? random.word[1] : word;
    word = id % 4 == 2 ? random.word[2] : word;
    word = id % 4 == 3 ? random.word[3] : word;
    offer(stats, z, z / temperature + gumbel(word), id);
  }
  sync_block();
  return merge_block(stats, reinterpret_cast<LogitStats*>(scratch.sums));
}

} // namespace edlm::cuda
