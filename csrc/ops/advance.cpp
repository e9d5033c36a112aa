#include <limits>

#include "../cpu/dispatch.h"
#include "gpu.h"
#include "ops.h"

namespace edlm {
namespace {

constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();

void check_slots(const Check& check, const AdvanceParams& p) {
  for (std::int64_t s = 0; s < p.state.slots; ++s) { // those from `batch` on, too: a step may be taken of them
    const SlotFields& slot = slot_fields(p.state, s);
    if (!slot.active) continue;
    const auto within = [&](const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
      check.that(value >= low && value <= high, "state: want a ", name, " of ", low, " to ", high, " in slot ", s,
                 ", got ", value);
    };
    within("block_length", slot.block_length, 1, p.state.max_block);
    within("full_length", slot.full_length, 1, p.state.max_block);
    within("start", slot.start, 0, kLargest - slot.block_length);
    const bool before = p.flags & kShift && slot.start > 0; // there is a row that predicts the first position
    within("pending", slot.pending, before ? 1 : 0, std::min<std::int64_t>(p.state.max_block, slot.start));
    check.that(before || !(p.flags & kShift) || !block_of(p.state, s).wanted[0],
               "state: want position 0 unwanted in slot ", s, ", since with SHIFT no row predicts it");
  }
}

void take_inputs(const Check& check, AdvanceParams& p, const Tensor& inputs) {
  const std::int64_t slots = p.state.slots, max_block = p.state.max_block;
  const int kinds = has_noisy_rows(p.flags, max_block) ? 2 : 1;
  const std::int64_t per_slot = inputs_per_slot(max_block, kinds);
  check.dense("inputs", inputs, ScalarType::Int, {kAny});
  p.batch = (inputs.size(0) - slots) / per_slot;
  check.that(p.batch >= 1 && p.batch <= slots && inputs.size(0) == p.batch * per_slot + slots, "inputs: want ", per_slot,
             " for each of 1 to ", slots, " slots and ", slots, " more, got ", inputs.size(0));
  p.inputs = step_inputs(data<std::int32_t>(inputs), p.batch, max_block, kinds);
}

void take_link(const Check& on_host, AdvanceParams& p, const Tensor& link) {
  on_host.dense("link", link, ScalarType::Int, {kAny, p.state.slots * p.state.words});
  on_host.that(link.size(0) >= 2, "link: want a row of words and one or more of snapshots, got ", link.size(0));
  on_host.that(p.state.slots > 0, "link: want a slot whose end it can ask for, got none in state");
  p.link = {data<std::int32_t>(link), link.size(0) - 1};
}

} // namespace

void advance(const Tensor& state, const OptionalTensor& inputs, const Tensor& control, const OptionalTensor& link,
             std::int64_t flags) {
  const Check on_host("edlm::advance"), check = link ? Check("edlm::advance", state) : on_host; // no link: the host leads
  AdvanceParams p{};
  p.state = block_state(check, state);
  check.that(flags >= 0 && flags < 2 * kShift, "flags: want a sum of flags, 0 to ", 2 * kShift - 1, ", got ", flags);
  p.flags = flags;
  p.batch = p.state.slots;
  check.that(inputs.has_value() == ((flags & kLayOut) != 0), "inputs: want them exactly where a step is laid out");
  if (inputs) take_inputs(check, p, *inputs);
  check.dense("control", control, ScalarType::Int, {sizeof(LoopControl) / 4});
  p.control = reinterpret_cast<LoopControl*>(data<std::int32_t>(control));
  if (link) take_link(on_host, p, *link);
  check.that(link || !(flags & kSnapshot), "link: want one for a snapshot");
  const Argument rows{"inputs", inputs ? &*inputs : nullptr}, words{"link", link ? &*link : nullptr};
  check.apart({{"state", &state}}, {{"control", &control}, rows, words});
  check.apart({{"control", &control}}, {rows, words});
  if constexpr (kHasGpu)
    if (check.on_gpu()) {
      check.that(inputs && !(flags & kCompact), "flags: on a GPU a step has fixed places, got ", flags);
      return launch_advance(p, GpuScope(state).stream());
    }
  check.that(!(flags & kSnapshot) || (p.control->snapshots >= 0 && p.control->snapshots < kLargest),
             "control[3]: want 0 to ", kLargest - 1, " snapshots, got ", p.control->snapshots);
  check_slots(check, p);
  cpu::advance(p);
}

} // namespace edlm
