// Checks plan.h for thousands of shapes and random.h for every number it can draw; prints what fails.
#include <cmath>
#include <cstdio>

#include "plan.h"
#include "random.h"

namespace {

int failures = 0;

void check(bool good, const char* what, std::int64_t a = 0, std::int64_t b = 0) {
  if (!good && ++failures < 10) std::printf("%s: %lld %lld\n", what, static_cast<long long>(a), static_cast<long long>(b));
}

// Parts cover the vocabulary once, in order, in whole groups of ids but for the last.
void check_parts(std::int64_t vocab) {
  const std::int64_t parts = edlm::vocab_parts(vocab);
  check(parts >= 1 && parts <= 128, "number of parts", vocab, parts);
  check(edlm::part_begin(0, parts, vocab) == 0, "first part", vocab);
  check(edlm::part_begin(parts, parts, vocab) == vocab, "last part", vocab);
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t begin = edlm::part_begin(part, parts, vocab);
    check(begin < edlm::part_begin(part + 1, parts, vocab), "empty part", vocab, part);
    check(begin % edlm::kStatsIds == 0, "part within a group", vocab, part);
  }
}

void check_gumbel() {
  float before = -INFINITY;
  for (std::uint32_t k = 0; k < 1u << 23; ++k) {
    const double u = (k + 0.5) * 0x1p-23, exact = -std::log(-std::log(u));
    const float got = edlm::gumbel(k << 9);
    check(std::fabs(got - exact) <= 4e-7 * std::fmax(1, std::fabs(exact)), "gumbel", k);
    check(got >= before && got < edlm::kMaxGumbel, "gumbel out of order or bounds", k);
    before = got;
  }
}

} // namespace

int main() {
  for (std::int64_t vocab = 1; vocab < 300000; vocab += vocab < 5000 ? 1 : 997) check_parts(vocab);
  for (std::int64_t hidden = 1; hidden < 20000; hidden += 7)
    for (const std::int64_t size : {2, 4}) {
      const std::int64_t chunk = edlm::weight_chunk(hidden, size);
      check(chunk >= 24 && chunk <= edlm::kStatsIds && chunk % 24 == 0, "weight chunk", hidden, chunk);
    }
  for (std::int64_t cost = 0; cost < 1 << 20; cost = cost * 3 / 2 + 1)
    check(edlm::grain_size(cost) >= 1 && edlm::grain_size(cost) * cost <= std::max(cost, edlm::kGrain), "grain", cost);
  for (std::int64_t ids = 0; ids < 5000; ++ids)
    check(edlm::padded_ids(ids) % edlm::kSampleIds == 0 && edlm::padded_ids(ids) - ids < edlm::kSampleIds, "padding", ids);
  static_assert(edlm::kStatsIds % edlm::kSampleIds == 0 && edlm::kKeyTile % edlm::kKeyGroup == 0);
  check_gumbel();
  return failures != 0;
}
