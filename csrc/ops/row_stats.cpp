#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "../cpu/dispatch.h"
#include "../stats.h"
#include "gpu.h"
#include "ops.h"
#include "parallel.h"

namespace edlm {
namespace {

// Whether a row needs its logits as a whole.
bool filtered(const RowStatsParams& p, std::int64_t slot) {
  const SlotFields& settings = slot_fields(p.state, slot);
  const bool top_k = settings.top_k > 0 && settings.top_k < p.vocab;
  return settings.temperature > 0 && (top_k || settings.top_p < 1);
}

// hidden . weight^T in float32: rounded to 16 bits, logits would tie, and ties decide which token is taken.
[[maybe_unused]] Tensor float_logits(const Tensor& hidden, const Tensor& weight) {
  const Tensor transposed = torch::stable::transpose(weight, 0, 1);
  if (hidden.scalar_type() == ScalarType::Float) return torch::stable::matmul(hidden, transposed);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(hidden), torch::stable::detail::from(transposed),
                                    torch::stable::detail::from(ScalarType::Float)};
  check_torch(torch_call_dispatcher("aten::mm", "dtype", stack.data(), TORCH_ABI_VERSION), "aten::mm.dtype");
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// logits_of(first, count): of those rows, float [count, vocab].
template <class LogitsOf>
void row_stats_on_gpu(RowStatsParams p, const GpuScope& gpu, const Tensor& hidden, LogitsOf logits_of) {
  p.dtype = DType::f32;
  p.parts = cuda_vocab_parts(p.vocab);
  const std::int64_t all_rows = std::exchange(p.rows, 0);
  for (std::int64_t first = 0; first < all_rows; first += p.rows) {
    p.rows = std::min(kLogitRows, all_rows - first);
    const Tensor logits = logits_of(first, p.rows);
    const Tensor partial = workspace(hidden, p.rows * p.parts * sizeof(LogitStats));
    p.all_logits = data(logits);
    p.partial = data<LogitStats>(partial);
    launch_row_stats(p, gpu.stream());
    p.slots += p.rows;
    p.positions += p.rows;
    p.ids += IdColumn::count * p.rows;
    p.stats += StatColumn::count * p.rows;
  }
}

// The same from quantised rows; dtype: u8 or e4m3.
[[maybe_unused]] void quantized_row_stats_on_gpu(const Check& check, const RowStatsParams& p, DType dtype,
                                                 const Tensor& hidden, const Tensor& weight) {
  const GpuScope gpu(hidden);
  row_stats_on_gpu(p, gpu, hidden, [&](std::int64_t first, std::int64_t count) {
    const Tensor logits = torch::stable::new_empty(hidden, {count, p.vocab}, ScalarType::Float);
    LinearParams linear{};
    linear.dtype = DType::f32;
    linear.rows = count;
    linear.inputs = p.hidden_size;
    linear.outputs = p.vocab;
    linear.x = static_cast<const char*>(p.hidden) + first * p.hidden_size;
    linear.x_scale = p.hidden_scale + first;
    linear.weight = data<std::uint32_t>(weight);
    linear.out = data(logits);
    linear.x_dtype = dtype;
    linear_on_gpu(check, linear, hidden, weight, gpu.stream());
    return logits;
  });
}

void check_vocab(const Check& check, std::int64_t vocab) {
  check.that(vocab > 0 && vocab < (1 << 24), "weight: want 1 to 2^24 - 1 rows, got ", vocab);
}

// Everything but hidden and weight, whose sizes must be in params.
void take_arguments(const Check& check, RowStatsParams& params, const Tensor& state, const Tensor& slots,
                    const Tensor& positions, std::int64_t forbidden_id, const Tensor& ids, const Tensor& stats) {
  params.state = block_state(check, state);
  check.dense("slots", slots, ScalarType::Int, {params.rows})
      .dense("positions", positions, ScalarType::Int, {params.rows})
      .dense("ids", ids, ScalarType::Int, {params.rows, IdColumn::count})
      .dense("stats", stats, ScalarType::Float, {params.rows, StatColumn::count});
  check.apart({{"ids", &ids}, {"stats", &stats}}, {{"state", &state}, {"slots", &slots}, {"positions", &positions}});
  check.columns("hidden", params.hidden_size);
  check.that(forbidden_id >= -1 && forbidden_id < params.vocab, "forbidden_id: want -1 or a row of weight (",
             params.vocab, "), got ", forbidden_id);
  params.slots = data<std::int32_t>(slots);
  params.positions = data<std::int32_t>(positions);
  params.forbidden_id = forbidden_id;
  params.ids = data<std::int32_t>(ids);
  params.stats = data<float>(stats);
}

void row_stats_on_cpu(const Check& check, RowStatsParams& params) {
  const std::int64_t rows = params.rows, vocab = params.vocab;
  std::vector<std::unique_ptr<float[]>> filtered_logits(rows);
  std::vector<float*> logits(rows);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t slot = params.slots[r];
    check.that(slot >= -1 && slot < params.state.slots, "slots[", r, "]: want -1 or less than ", params.state.slots, ", got ",
               slot);
    if (slot < 0 || !filtered(params, slot)) continue;
    filtered_logits[r].reset(new float[padded_ids(vocab)]);
    logits[r] = filtered_logits[r].get();
  }
  params.parts = vocab_parts(vocab);
  params.partial = reinterpret_cast<LogitStats*>(scratch<1>(rows * params.parts * sizeof(LogitStats)));
  params.logits = logits.data();

  const cpu::Kernels& kernels = cpu::kernels();
  parallel(params.parts, rows * params.hidden_size * (vocab / params.parts) / kMacsPerElement,
           [&](std::int64_t begin, std::int64_t end) { kernels.row_stats(params, begin, end); });
  const bool any_filtered = std::any_of(logits.begin(), logits.end(), [](const float* z) { return z != nullptr; });
  parallel(rows, any_filtered ? vocab : params.parts,
           [&](std::int64_t begin, std::int64_t end) { cpu::row_stats_finish(params, begin, end); });
}

} // namespace

void row_stats(const Tensor& hidden, const Tensor& weight, const Tensor& state, const Tensor& slots,
               const Tensor& positions, std::int64_t forbidden_id, const Tensor& ids, const Tensor& stats) {
  const Check check("edlm::row_stats", hidden);
  RowStatsParams params{};
  params.dtype = check.dtype("hidden", hidden);
  check.dense("hidden", hidden, hidden.scalar_type(), {kAny, kAny});
  params.rows = hidden.size(0);
  params.hidden_size = hidden.size(1);
  check.dense("weight", weight, hidden.scalar_type(), {kAny, params.hidden_size});
  params.vocab = weight.size(0);
  check_vocab(check, params.vocab);
  params.hidden = data(hidden);
  params.weight = data(weight);
  take_arguments(check, params, state, slots, positions, forbidden_id, ids, stats);
  if constexpr (kHasGpu)
    if (check.on_gpu()) {
      const GpuScope gpu(hidden);
      Tensor rows = hidden; // narrow() wants it changeable
      return row_stats_on_gpu(params, gpu, hidden, [&](std::int64_t first, std::int64_t count) {
        return float_logits(torch::stable::narrow(rows, 0, first, count), weight);
      });
    }
  row_stats_on_cpu(check, params);
}

void row_stats_quantized(const Tensor& hidden, const Tensor& hidden_scale, const Tensor& weight, std::int64_t vocab,
                         const Tensor& state, const Tensor& slots, const Tensor& positions, std::int64_t forbidden_id,
                         const Tensor& ids, const Tensor& stats) {
  const Check check("edlm::row_stats_quantized", hidden);
  RowStatsParams params{};
  const DType dtype = quantized_dtype(check, "hidden", hidden);
  check.dense("hidden", hidden, dtype == DType::e4m3 ? ScalarType::Float8_e4m3fn : ScalarType::Byte, {kAny, kAny});
  params.rows = hidden.size(0);
  params.hidden_size = hidden.size(1);
  params.vocab = vocab;
  check_quantized_inputs(check, "hidden", hidden);
  check_vocab(check, vocab);
  check.dense("hidden_scale", hidden_scale, ScalarType::Float, {params.rows});
  if (!check.on_gpu())
    check.dense("weight", weight, ScalarType::Int, {ceil_div(vocab, kPanel), params.hidden_size / 4 + 2, kPanel});
  params.hidden = data(hidden);
  params.hidden_scale = data<float>(hidden_scale);
  params.weight = data(weight);
  take_arguments(check, params, state, slots, positions, forbidden_id, ids, stats);
  if constexpr (kHasGpu)
    if (check.on_gpu()) return quantized_row_stats_on_gpu(check, params, dtype, hidden, weight);
  row_stats_on_cpu(check, params);
}

} // namespace edlm
