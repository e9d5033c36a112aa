#include "../plan.h"
#include "../random.h"
#include "../stats.h"
#include "kernels.h"
#include "linear_panel.h"
#include "vec.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

constexpr std::int64_t kDepth = 1024; // of hidden at a time, so that a tile of hidden rows stays in the first cache
constexpr std::int64_t kMaxRows = kRegisters == 32 ? 8 : 4; // of a register tile

// The logits of some rows and ids: [kStatsRows, kStatsIds].
struct Logits {
  alignas(64) float z[kStatsRows * kStatsIds];
};

// out[r][c] += hidden row r . weight row c. Every element has one chain of sums along hidden, whatever R and C.
// `ahead` is memory that will be needed soon, in the shape of the weight rows.
template <class T, int R, int C>
void dot_tile(const T* hidden, const T* weight, const T* ahead, std::int64_t stride, std::int64_t depth, float* out) {
  constexpr std::int64_t step = kWidth * kPerUnit<T>;
  Vec sum[R][C] = {};
  auto add = [&](auto units_at) {
    Units<T> w[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) w[c] = units_at(weight + c * stride);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Units<T> h = units_at(hidden + r * stride);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] = dot(sum[r][c], h, w[c]);
    }
  };
  std::int64_t i = 0;
  for (; i + step <= depth; i += step) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) __builtin_prefetch(ahead + c * stride + i, 0, 2);
    add([i](const T* p) { return load_units<T>(p + i); });
  }
  if (i < depth) add([=](const T* p) { return load_units<T>(p + i, depth - i); });
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) out[r * kStatsIds + c] += reduce_add(sum[r][c]);
}

// out [R, kStatsIds] += logits of hidden rows and weight rows [count]. Of the weights that lie `next` elements
// further on, which the next call will read from memory, the share-th of `shares` is fetched meanwhile.
template <class T, int R>
void logits_tile(const T* hidden, const T* weight, std::int64_t next, std::int64_t share, std::int64_t shares,
                 std::int64_t stride, std::int64_t count, float* out) {
  constexpr int fitting = (kRegisters - 2) / (R + 1); // R * C sums, C weights, one hidden vector
  constexpr int C = fitting > 8 ? 8 : fitting;
  for (std::int64_t at = 0; at < stride; at += kDepth) {
    const std::int64_t depth = std::min(kDepth, stride - at);
    std::int64_t c = 0;
    for (; c + C <= count; c += C) {
      const T* w = weight + c * stride + at;
      dot_tile<T, R, C>(hidden + at, w, c / C % shares == share ? w + next : w, stride, depth, out + c);
    }
    for (; c < count; ++c) {
      const T* w = weight + c * stride + at;
      dot_tile<T, R, 1>(hidden + at, w, w, stride, depth, out + c);
    }
  }
}

// Logits of the rows [row, row + rows) and ids [first, first + ids), in chunks of weights that stay in the second-level
// cache while all rows pass.
template <class T>
void compute_logits(const RowStatsParams& p, std::int64_t row, std::int64_t rows, std::int64_t first, std::int64_t ids,
                    Logits& logits) {
  std::memset(logits.z, 0, rows * kStatsIds * 4);
  const std::int64_t stride = p.hidden_size, chunk = weight_chunk(stride, sizeof(T)), shares = ceil_div(rows, kMaxRows);
  for (std::int64_t id = 0; id < ids; id += chunk) {
    const T* weight = static_cast<const T*>(p.weight) + (first + id) * stride;
    for (std::int64_t r = 0; r < rows;) {
      const std::int64_t left = rows - r, share = r / kMaxRows;
      auto tile = [&](auto height) {
        constexpr int R = decltype(height)::value;
        logits_tile<T, R>(static_cast<const T*>(p.hidden) + (row + r) * stride, weight, chunk * stride, share, shares,
                          stride, std::min(chunk, ids - id), logits.z + r * kStatsIds + id);
        r += R;
      };
      if (kMaxRows == 8 && left >= 8)
        tile(Constant<8>{});
      else if (left >= 4)
        tile(Constant<4>{});
      else if (left >= 2)
        tile(Constant<2>{});
      else
        tile(Constant<1>{});
    }
  }
}

// The same of quantised rows and int8 panels. first is a panel's first id.
void compute_int_logits(const RowStatsParams& p, std::int64_t row, std::int64_t rows, std::int64_t first,
                        std::int64_t ids, Logits& logits) {
  static_assert(kStatsIds % kPanel == 0);
  alignas(64) std::int32_t sums[kStatsRows * kPanel];
  for (std::int64_t id = 0; id < ids; id += kPanel) {
    const Panel<std::int8_t> panel(static_cast<const std::uint32_t*>(p.weight), (first + id) / kPanel, p.hidden_size);
    multiply(p.hidden, row, rows, panel, sums);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < kPanel; c += kWidth)
        store(logits.z + r * kStatsIds + id + c, panel.value(sums + r * kPanel, c, p.hidden_scale[row + r]));
  }
}

// Gumbel numbers of the ids first ... first + 63.
void gumbels(std::int64_t first, const std::int32_t (&seed)[2], std::int32_t position, std::int32_t step, float* out) {
  std::uint32_t bits[4][16];
  for (std::uint32_t quad = 0; quad < 16; ++quad) {
    const PhiloxBlock random = philox_ids(static_cast<std::uint32_t>(first / 4) + quad, seed, position, step);
    for (int word = 0; word < 4; ++word) bits[word][quad] = random.word[word];
  }
  for (int word = 0; word < 4; ++word)
    for (int quad = 0; quad < 16; ++quad) out[quad * 4 + word] = gumbel(bits[word][quad]);
}

// Looks for a larger z / temperature + gumbel than stats.best among logits [count, padded to kSampleIds].
void sample(const RowStatsParams& p, std::int64_t row, std::int64_t first, std::int64_t count, const float* logits,
            LogitStats& stats) {
  const std::int64_t slot = p.slots[row];
  const SlotFields& settings = slot_fields(p.state, slot);
  const float temperature = settings.temperature;
  for (std::int64_t i = 0; i < count; i += kSampleIds) {
    Vec largest = splat(-INFINITY);
    for (std::int64_t j = 0; j < kSampleIds; j += kWidth) largest = max(largest, load(logits + i + j));
    if (!(reduce_max(largest) / temperature + kMaxGumbel > stats.best)) continue;
    alignas(64) float value[kSampleIds];
    gumbels(first + i, settings.seed, p.positions[row], settings.step, value);
    largest = splat(-INFINITY);
    for (std::int64_t j = 0; j < kSampleIds; j += kWidth) {
      const Vec v = load(logits + i + j) / temperature + load(value + j);
      store(value + j, v);
      largest = max(largest, v);
    }
    const float best = reduce_max(largest);
    if (!(best > stats.best)) continue;
    std::int64_t j = 0;
    while (value[j] != best) ++j;
    stats.best = best;
    stats.z_best = logits[i + j];
    stats.id_best = static_cast<std::int32_t>(first + i + j);
  }
}

// Statistics of logits [count], padded with -inf to a multiple of kWidth.
LogitStats summarise(const float* logits, std::int64_t first, std::int64_t count) {
  LogitStats stats = empty_stats();
  Vec z1 = splat(-INFINITY), z2 = z1, id1{}, id{};
  for (int i = 0; i < kWidth; ++i) id[i] = static_cast<float>(i);
  IntVec bad{};
  for (std::int64_t i = 0; i < count; i += kWidth) { // per lane: the two largest, and the first one's id
    const Vec z = load(logits + i);
    bad |= ~(z < INFINITY);
    z2 = max(z2, min(z, z1));
    id1 = z > z1 ? id : id1;
    z1 = max(z1, z);
    id += static_cast<float>(kWidth);
  }
  stats.bad = any(bad);
  stats.z1 = reduce_max(z1);
  if (stats.bad || stats.z1 == -INFINITY) return stats;
  const float winner = -reduce_max(z1 == stats.z1 ? -id1 : splat(-INFINITY)); // the lowest id of the largest
  stats.id1 = static_cast<std::int32_t>(first + static_cast<std::int64_t>(winner));
  stats.z2 = reduce_max(id1 == winner && z1 == stats.z1 ? z2 : z1);
  Vec sum{}, weighted{};
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const Vec shifted = load(logits + i) - stats.z1;
    const Vec e = exp(shifted);
    sum += e;
    weighted = fma(e, max(shifted, splat(-200.0f)), weighted); // where e is 0 no infinity may enter
  }
  stats.sum = reduce_add(sum);
  stats.weighted = reduce_add(weighted);
  return stats;
}

// Adds a row's logits [count] to the statistics of its part.
void add_row(const RowStatsParams& p, std::int64_t row, std::int64_t first, std::int64_t count, std::int64_t part,
             float* z) {
  for (std::int64_t i = count; i % kSampleIds != 0; ++i) z[i] = -INFINITY;
  if (p.forbidden_id >= first && p.forbidden_id < first + count) z[p.forbidden_id - first] = -INFINITY;
  LogitStats stats = summarise(z, first, count);
  LogitStats& total = p.partial[row * p.parts + part];
  if (p.logits[row])
    std::memcpy(p.logits[row] + first, z, padded_ids(count) * 4);
  else if (slot_fields(p.state, p.slots[row]).temperature > 0 && !stats.bad) {
    stats.best = total.best;
    sample(p, row, first, count, z, stats);
  }
  merge_stats(total, stats);
}

} // namespace

void row_stats(const RowStatsParams& p, std::int64_t begin, std::int64_t end) {
  Logits logits;
  for (std::int64_t part = begin; part < end; ++part) {
    for (std::int64_t row = 0; row < p.rows; ++row) p.partial[row * p.parts + part] = empty_stats();
    const std::int64_t last = part_begin(part + 1, p.parts, p.vocab);
    for (std::int64_t first = part_begin(part, p.parts, p.vocab); first < last; first += kStatsIds)
      for (std::int64_t row = 0; row < p.rows; row += kStatsRows) {
        const std::int64_t rows = std::min(kStatsRows, p.rows - row), ids = std::min(kStatsIds, last - first);
        if (p.hidden_scale)
          compute_int_logits(p, row, rows, first, ids, logits);
        else
          p.dtype == DType::f32 ? compute_logits<float>(p, row, rows, first, ids, logits)
                                : compute_logits<bf16>(p, row, rows, first, ids, logits);
        for (std::int64_t r = 0; r < rows; ++r)
          if (p.slots[row + r] >= 0) add_row(p, row + r, first, ids, part, logits.z + r * kStatsIds);
      }
  }
}

double softmax_sum(const float* z, std::int64_t count, float largest, float temperature) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; i += kStatsIds) { // fp32 within such a stretch, fp64 across
    Vec part{};
    for (std::int64_t j = i; j < std::min(count, i + kStatsIds); j += kWidth)
      part += exp((load(z + j) - largest) / temperature);
    sum += reduce_add(part);
  }
  return sum;
}

} // namespace edlm::cpu::EDLM_ISA
