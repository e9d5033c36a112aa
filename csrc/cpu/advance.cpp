#include "../step/advance.h"

#include <atomic>
#include <cstring>

#include "../step/lanes.h"
#include "dispatch.h"

namespace edlm::cpu {
namespace {

void write_snapshot(const AdvanceParams& p) {
  const std::int64_t words = p.state.slots * p.state.words;
  const std::int64_t row = 1 + p.control->snapshots % p.link.ring_size;
  std::memcpy(p.link.words + row * words, p.state.records, words * 4);
  std::atomic_thread_fence(std::memory_order_release); // whoever sees the count sees the bytes
  p.link.words[kHostSnapshots] = ++p.control->snapshots;
}

Places next_places(const AdvanceParams& p, const Block& b, std::int64_t slot) {
  const std::int64_t base = slot * p.state.max_block;
  const bool noisy = has_noisy_rows(p.flags, p.state.max_block);
  if (!(p.flags & kCompact))
    return {noisy ? base : 0,   (noisy ? p.batch * p.state.max_block : 0) + base, base, slot,
            p.batch + slot, static_cast<int>(p.state.max_block)};
  const LoopControl& c = *p.control;
  return {c.rows + b.slot.pending, c.rows, c.heads, c.query_blocks + (b.slot.pending > 0), c.query_blocks, 0};
}

void count(LoopControl& control, const Rows& rows) {
  control.rows += rows.clean + rows.noisy;
  control.query_blocks += (rows.clean > 0) + (rows.noisy > 0);
  control.heads += rows.heads;
}

} // namespace

void advance(const AdvanceParams& p) {
  const bool shift = p.flags & kShift, noisy = has_noisy_rows(p.flags, p.state.max_block);
  if (p.flags & kSnapshot) write_snapshot(p);
  p.control->rows = p.control->query_blocks = p.control->heads = 0;
  bool any = false, commit = false;
  for (std::int64_t s = 0; s < p.state.slots; ++s) {
    const Block b = block_of(p.state, s);
    if (b.slot.active && p.flags & kTake) take_step(b, static_cast<int>(p.state.max_block), shift, OneLane{});
    if ((p.link.words && p.link.words[kHostStop + s]) || s >= p.batch) b.slot.active = 0;
    any |= b.slot.active != 0;
    commit |= b.slot.active && b.slot.pending > 0;
    if (!(p.flags & kLayOut)) continue;
    p.inputs.first_row[s] = -1;
    if (s >= p.batch || (p.flags & kCompact && !b.slot.active)) continue;
    count(*p.control, lay_out(p.inputs, b, static_cast<int>(s), next_places(p, b, s), b.slot.active != 0, noisy, shift,
                              OneLane{}));
  }
  p.control->go_on = any && !(p.link.words && p.link.words[kHostPause]);
  p.control->commit = commit;
}

} // namespace edlm::cpu
