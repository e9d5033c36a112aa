#include "../cpu/dispatch.h"
#include "gpu.h"
#include "ops.h"
#include "parallel.h"

namespace edlm {
namespace {

void check_slots(const Check& check, const UnmaskParams& p, std::int64_t rows) {
  for (std::int64_t s = 0; s < p.slots; ++s) {
    if (p.first_row[s] == -1) continue;
    std::int64_t masked = 0;
    for (std::int64_t j = 0; j < p.max_block; ++j) masked += p.masked[s * p.max_block + j] != 0;
    check.that(masked == p.num_masked[s], "num_masked[", s, "]: want the ", masked, " of masked, got ",
               p.num_masked[s]);
    check.that(p.first_row[s] >= 0 && p.first_row[s] + masked <= rows, "first_row[", s, "]: want ", masked,
               " rows within the ", rows, " of ids, got row ", p.first_row[s]);
  }
}

} // namespace

void unmask(const Tensor& ids, const Tensor& stats, const Tensor& first_row, const Tensor& threshold,
            const Tensor& steps_per_block, const Tensor& block_length, const Tensor& tokens, const Tensor& confidence,
            const Tensor& commit_step, const Tensor& masked, const Tensor& num_masked, const Tensor& step,
            const Tensor& status) {
  const Check check("edlm::unmask", ids);
  check.dense("ids", ids, ScalarType::Int, {kAny, 2}).dense("tokens", tokens, ScalarType::Int, {kAny, kAny});
  const std::int64_t rows = ids.size(0), slots = tokens.size(0), max_block = tokens.size(1);
  check.dense("stats", stats, ScalarType::Float, {rows, 5})
      .dense("first_row", first_row, ScalarType::Int, {slots})
      .dense("threshold", threshold, ScalarType::Float, {slots})
      .dense("steps_per_block", steps_per_block, ScalarType::Int, {slots})
      .dense("block_length", block_length, ScalarType::Int, {slots})
      .dense("confidence", confidence, ScalarType::Float, {slots, max_block})
      .dense("commit_step", commit_step, ScalarType::Int, {slots, max_block})
      .dense("masked", masked, ScalarType::Byte, {slots, max_block})
      .dense("num_masked", num_masked, ScalarType::Int, {slots})
      .dense("step", step, ScalarType::Int, {slots})
      .dense("status", status, ScalarType::Int, {slots});
  const UnmaskParams params{slots,
                            max_block,
                            data<std::int32_t>(ids),
                            data<float>(stats),
                            data<std::int32_t>(first_row),
                            data<float>(threshold),
                            data<std::int32_t>(steps_per_block),
                            data<std::int32_t>(block_length),
                            data<std::int32_t>(tokens),
                            data<float>(confidence),
                            data<std::int32_t>(commit_step),
                            data<std::uint8_t>(masked),
                            data<std::int32_t>(num_masked),
                            data<std::int32_t>(step),
                            data<std::int32_t>(status)};
  if constexpr (kHasGpu)
    if (check.on_gpu()) return launch_unmask(params, GpuScope(ids).stream());
  check_slots(check, params, rows);
  parallel(slots, max_block * max_block,
           [&](std::int64_t begin, std::int64_t end) { cpu::unmask(params, begin, end); });
}

} // namespace edlm
