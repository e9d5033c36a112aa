#include "../cpu/dispatch.h"
#include "gpu.h"
#include "ops.h"

namespace edlm {
namespace {

void check_slots(const Check& check, const AdvanceParams& p) {
  for (std::int64_t s = 0; s < p.batch; ++s) {
    if (!p.active[s]) continue;
    const auto within = [&](const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
      check.that(value >= low && value <= high, name, "[", s, "]: want ", low, " to ", high, ", got ", value);
    };
    within("block_length", p.block_length[s], 1, p.max_block);
    within("full_length", p.full_length[s], 1, p.max_block);
    within("pending", p.pending[s], p.shift ? 1 : 0, std::min<std::int64_t>(p.max_block, p.start[s]));
  }
}

} // namespace

void advance(const Tensor& tokens, const Tensor& masked, const Tensor& clean, const Tensor& num_masked,
             const Tensor& block_length, const Tensor& step, const Tensor& status, const Tensor& active,
             const Tensor& start, const Tensor& pending, const Tensor& end, const Tensor& full_length,
             const Tensor& stop_ids, const Tensor& token_ids, const Tensor& row_slots, const Tensor& positions,
             const Tensor& query_blocks, const Tensor& head_rows, const Tensor& head_slots,
             const Tensor& head_positions, const Tensor& first_row, const Tensor& control, const Tensor& snapshot,
             const Tensor& ring, const Tensor& host, std::int64_t mask_id, bool shift, bool lay_out_only) {
  const Check check("edlm::advance", tokens), on_host("edlm::advance");
  const auto ints = [&](const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> shape) {
    check.dense(name, tensor, ScalarType::Int, shape);
    return data<std::int32_t>(tensor);
  };
  AdvanceParams p{};
  p.tokens = ints("tokens", tokens, {kAny, kAny});
  p.slots = tokens.size(0);
  p.max_block = tokens.size(1);
  p.head_rows = ints("head_rows", head_rows, {kAny});
  p.batch = p.max_block > 0 ? head_rows.size(0) / p.max_block : 0;
  check.that(p.batch > 0 && p.batch <= p.slots && head_rows.size(0) == p.batch * p.max_block, "head_rows: want ",
             p.max_block, " for each of 1 to ", p.slots, " slots, got ", head_rows.size(0));
  check.that(mask_id >= 0 || (shift && p.max_block == 1),
             "mask_id: none (an autoregressive model) goes with shift and blocks of 1 alone, got blocks of ", p.max_block);
  p.mask_id = static_cast<std::int32_t>(mask_id);
  p.shift = shift;
  p.lay_out_only = lay_out_only;
  const std::int64_t heads = p.batch * p.max_block, rows = (mask_id >= 0 ? 2 : 1) * heads;
  check.dense("masked", masked, ScalarType::Byte, {p.slots, p.max_block});
  p.masked = data<std::uint8_t>(masked);
  p.clean = ints("clean", clean, {p.slots, p.max_block});
  p.num_masked = ints("num_masked", num_masked, {p.slots});
  p.block_length = ints("block_length", block_length, {p.slots});
  p.step = ints("step", step, {p.slots});
  p.status = ints("status", status, {p.slots});
  p.active = ints("active", active, {p.slots});
  p.start = ints("start", start, {p.slots});
  p.pending = ints("pending", pending, {p.slots});
  p.end = ints("end", end, {p.slots});
  p.full_length = ints("full_length", full_length, {p.slots});
  p.stop_ids = ints("stop_ids", stop_ids, {p.slots, kAny});
  p.stop_ids_per_slot = stop_ids.size(1);
  p.token_ids = ints("token_ids", token_ids, {rows});
  p.row_slots = ints("row_slots", row_slots, {rows});
  p.positions = ints("positions", positions, {rows});
  p.query_blocks = reinterpret_cast<QueryBlock*>(ints("query_blocks", query_blocks, {2 * p.batch, 6}));
  p.head_slots = ints("head_slots", head_slots, {heads});
  p.head_positions = ints("head_positions", head_positions, {heads});
  p.first_row = ints("first_row", first_row, {p.slots});
  p.control = reinterpret_cast<LoopControl*>(ints("control", control, {sizeof(LoopControl) / 4}));
  check.dense("snapshot", snapshot, ScalarType::Byte, {kAny});
  p.snapshot = data<std::uint8_t>(snapshot);
  p.snapshot_bytes = snapshot.size(0);
  check.that(p.snapshot_bytes % 16 == 0, "snapshot: want a multiple of 16 bytes, got ", p.snapshot_bytes);
  on_host.dense("ring", ring, ScalarType::Byte, {kAny, p.snapshot_bytes})
      .dense("host", host, ScalarType::Int, {kHostStop + p.slots});
  p.ring = data<std::uint8_t>(ring);
  p.ring_size = ring.size(0);
  check.that(p.ring_size > 0, "ring: want at least one row, got 0");
  p.host = data<std::int32_t>(host);
  if constexpr (kHasGpu)
    if (check.on_gpu()) return launch_advance(p, GpuScope(tokens).stream());
  check_slots(check, p);
  cpu::advance(p);
}

} // namespace edlm
