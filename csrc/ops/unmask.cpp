#include "../step/unmask.h"

#include <limits>

#include "../cpu/dispatch.h"
#include "gpu.h"
#include "ops.h"
#include "parallel.h"

namespace edlm {
namespace {

constexpr std::int32_t kLargest = std::numeric_limits<std::int32_t>::max();

void check_slots(const Check& check, const UnmaskParams& p, std::int64_t rows) {
  for (std::int64_t s = 0; s < p.state.slots; ++s) {
    if (p.first_row[s] == -1) continue;
    const Block b = block_of(p.state, s);
    check.that(b.slot.block_length >= 1 && b.slot.block_length <= p.state.max_block, "state: want a block_length of 1 to ",
               p.state.max_block, " in slot ", s, ", got ", b.slot.block_length);
    check.that(b.slot.rule >= 0 && b.slot.rule < static_cast<std::int32_t>(Rule::count), "state: want a rule of 0 to ",
               static_cast<std::int32_t>(Rule::count) - 1, " in slot ", s, ", got ", b.slot.rule);
    check.that(b.slot.step >= 0 && b.slot.step < kLargest, "state: want a step of 0 to ", kLargest - 1, " in slot ", s,
               ", got ", b.slot.step);
    std::int64_t wanted = 0;
    for (std::int32_t j = 0; j < b.slot.block_length; ++j) wanted += b.wanted[j] != 0;
    check.that(p.first_row[s] >= 0 && p.first_row[s] + wanted <= rows, "first_row[", s, "]: want ", wanted,
               " rows within the ", rows, " of ids, got row ", p.first_row[s]);
  }
}

} // namespace

void unmask(const Tensor& state, const Tensor& ids, const Tensor& stats, const Tensor& first_row) {
  const Check check("edlm::unmask", state);
  UnmaskParams p{};
  p.state = block_state(check, state);
  check.dense("ids", ids, ScalarType::Int, {kAny, IdColumn::count});
  const std::int64_t rows = ids.size(0);
  check.dense("stats", stats, ScalarType::Float, {rows, StatColumn::count})
      .dense("first_row", first_row, ScalarType::Int, {p.state.slots});
  check.apart({{"state", &state}}, {{"ids", &ids}, {"stats", &stats}, {"first_row", &first_row}});
  p.ids = data<std::int32_t>(ids);
  p.stats = data<float>(stats);
  p.first_row = data<std::int32_t>(first_row);
  if constexpr (kHasGpu)
    if (check.on_gpu()) return launch_unmask(p, GpuScope(state).stream());
  check_slots(check, p, rows);
  p.scratch = scratch<0>(p.state.max_block * kCommitScratchBytes);
  cpu::unmask(p);
}

} // namespace edlm
