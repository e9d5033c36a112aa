#include "../plan.h"
#include "../random.h"
#include "../stats.h"
#include "kernels.h"
#include "vec.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

constexpr int kRowTileMax = kRegisters == 32 ? 8 : 4;
constexpr std::int64_t kDepth = 1024; // of hidden at a time, so that a tile of hidden rows stays in the first cache
constexpr std::int64_t kMaxChunk = 512;

// out[r][c] += hidden row r . weight row c. Every element has one chain of sums along hidden, whatever R and C.
template <class T, int R, int C>
void dot_tile(const T* hidden, const T* weight, std::int64_t stride, std::int64_t depth, float* out) {
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
  for (; i + step <= depth; i += step) add([i](const T* p) { return load_units<T>(p + i); });
  if (i < depth) add([=](const T* p) { return load_units<T>(p + i, depth - i); });
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) out[r * kMaxChunk + c] += reduce_add(sum[r][c]);
}

// logits [R, kMaxChunk] of the vocabulary rows [first, first + count).
template <class T, int R>
void logits_tile(const RowStatsParams& p, std::int64_t row, std::int64_t first, std::int64_t count, float* logits) {
  constexpr int fitting = (kRegisters - 2) / (R + 1); // R * C sums, C weights, one hidden vector
  constexpr int C = fitting > 8 ? 8 : fitting;
  const std::int64_t stride = p.hidden_size;
  std::memset(logits, 0, R * kMaxChunk * 4);
  for (std::int64_t at = 0; at < stride; at += kDepth) {
    const std::int64_t depth = std::min(kDepth, stride - at);
    const T* hidden = static_cast<const T*>(p.hidden) + row * stride + at;
    const T* weight = static_cast<const T*>(p.weight) + first * stride + at;
    std::int64_t c = 0;
    for (; c + C <= count; c += C) dot_tile<T, R, C>(hidden, weight + c * stride, stride, depth, logits + c);
    for (; c < count; ++c) dot_tile<T, R, 1>(hidden, weight + c * stride, stride, depth, logits + c);
  }
}

// The largest z / temperature + gumbel of logits [count], whose first id is a multiple of 4.
void sample(const RowStatsParams& p, std::int64_t row, std::int64_t first, std::int64_t count, const float* logits,
            LogitStats& stats) {
  const std::int64_t slot = p.slots[row];
  const float temperature = p.temperature[slot];
  for (std::int64_t i = 0; i < count; i += 4) {
    const std::int64_t n = std::min<std::int64_t>(4, count - i);
    float largest = -INFINITY;
    for (std::int64_t j = 0; j < n; ++j) largest = std::fmax(largest, logits[i + j]);
    if (!(largest / temperature + kMaxGumbel > stats.best)) continue;
    const PhiloxBlock random = philox_ids((first + i) / 4, p.seed[slot], p.positions[row], p.step[slot]);
    for (std::int64_t j = 0; j < n; ++j) {
      const float value = logits[i + j] / temperature + gumbel(random.word[j]);
      if (value > stats.best) {
        stats.best = value;
        stats.z_best = logits[i + j];
        stats.id_best = static_cast<std::int32_t>(first + i + j);
      }
    }
  }
}

// Statistics of logits [count], padded with -inf to a multiple of kWidth.
LogitStats summarise(const float* logits, std::int64_t first, std::int64_t count) {
  LogitStats stats = empty_stats();
  Vec z1 = splat(-INFINITY), z2 = z1, id1{}, id{};
  for (int i = 0; i < kWidth; ++i) id[i] = static_cast<float>(i);
  IntVec bad{};
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const Vec z = load(logits + i);
    bad |= ~(z < INFINITY);
    z2 = max(z2, min(z, z1));
    id1 = z > z1 ? id : id1;
    z1 = max(z1, z);
    id += static_cast<float>(kWidth);
  }
  stats.bad = any(bad);
  int winner = 0;
  for (int i = 1; i < kWidth; ++i)
    if (z1[i] > z1[winner] || (z1[i] == z1[winner] && id1[i] < id1[winner])) winner = i;
  stats.z1 = z1[winner];
  stats.id1 = static_cast<std::int32_t>(first + static_cast<std::int64_t>(id1[winner]));
  z1[winner] = z2[winner];
  stats.z2 = reduce_max(z1);
  if (stats.z1 == -INFINITY) return stats;
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

template <class T, int R>
void row_tile(const RowStatsParams& p, std::int64_t row, std::int64_t first, std::int64_t count, std::int64_t part) {
  alignas(64) float logits[R * kMaxChunk];
  logits_tile<T, R>(p, row, first, count, logits);
  for (std::int64_t r = row; r < row + R; ++r) {
    if (p.slots[r] < 0) continue;
    float* z = logits + (r - row) * kMaxChunk;
    for (std::int64_t i = count; i % kWidth != 0; ++i) z[i] = -INFINITY;
    if (p.forbidden_id >= first && p.forbidden_id < first + count) z[p.forbidden_id - first] = -INFINITY;
    LogitStats stats = summarise(z, first, count);
    LogitStats& total = p.partial[r * p.parts + part];
    if (p.logits[r])
      std::memcpy(p.logits[r] + first, z, count * 4);
    else if (p.temperature[p.slots[r]] > 0) {
      stats.best = total.best;
      sample(p, r, first, count, z, stats);
    }
    merge_stats(total, stats);
  }
}

template <class T>
void chunk(const RowStatsParams& p, std::int64_t first, std::int64_t count, std::int64_t part) {
  for (std::int64_t row = 0; row < p.rows;) {
    const std::int64_t left = p.rows - row;
    if (kRowTileMax == 8 && left >= 8) {
      row_tile<T, 8>(p, row, first, count, part);
      row += 8;
    } else if (left >= 4) {
      row_tile<T, 4>(p, row, first, count, part);
      row += 4;
    } else if (left >= 2) {
      row_tile<T, 2>(p, row, first, count, part);
      row += 2;
    } else {
      row_tile<T, 1>(p, row, first, count, part);
      row += 1;
    }
  }
}

} // namespace

void row_stats(const RowStatsParams& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t size = vocab_chunk(p.hidden_size, size_of(p.dtype)), chunks = ceil_div(p.vocab, size);
  for (std::int64_t part = begin; part < end; ++part) {
    for (std::int64_t row = 0; row < p.rows; ++row) p.partial[row * p.parts + part] = empty_stats();
    for (std::int64_t c = part_begin(part, p.parts, chunks); c < part_begin(part + 1, p.parts, chunks); ++c) {
      const std::int64_t first = c * size, count = std::min(size, p.vocab - first);
      p.dtype == DType::f32 ? chunk<float>(p, first, count, part) : chunk<bf16>(p, first, count, part);
    }
  }
}

} // namespace edlm::cpu::EDLM_ISA
