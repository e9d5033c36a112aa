// Runs one case of one op: run <op> <seed> < case > outputs.
#include <exception>

#include "../cuda/advance.cuh"
#include "../cuda/block_attention.cuh"
#include "../cuda/linear.cuh"
#include "../cuda/qkv_prepare.cuh"
#include "../cuda/quantize_rows.cuh"
#include "../cuda/rms_norm.cuh"
#include "../cuda/row_stats.cuh"
#include "../cuda/silu_mul.cuh"
#include "../cuda/unmask.cuh"
#include "broken.h"
#include "case.h"

namespace edlm {
namespace {

using host_sim::Case;
constexpr cuda::Stream stream = nullptr;

DType dtype(const Case& c) { return static_cast<DType>(c.integer("dtype")); }

PagedCache paged_cache(const Case& c) {
  return {c.buffer("k_cache"),   c.buffer("v_cache"), c.buffer<std::int32_t>("page_table"), c.integer("slots"),
          c.integer("max_pages"), c.integer("pages"),  c.integer("page_size")};
}

BlockState block_state(const Case& c) {
  const std::int64_t words = c.integer("words");
  return {c.buffer<std::int32_t>("state"), c.integer("slots"), max_block_of(words), words};
}

QuantizedOut quantized(const Case& c) {
  if (!c.buffer("q")) return {};
  return {c.buffer<std::uint8_t>("q"), c.buffer<float>("scale"), static_cast<DType>(c.integer("q_dtype"))};
}

void rms_norm(const Case& c) {
  cuda::rms_norm({dtype(c), c.integer("rows"), c.integer("hidden"), c.number("eps"), c.buffer("x"), c.buffer("delta"),
                  c.buffer("weight"), c.buffer("out"), quantized(c)},
                 stream);
}

void silu_mul(const Case& c) {
  cuda::silu_mul({dtype(c), c.integer("rows"), c.integer("inner"), c.buffer("gate_up"), c.buffer("out"),
                  quantized(c)},
                 stream);
}

void quantize_rows(const Case& c) {
  cuda::quantize_rows({dtype(c), c.integer("rows"), c.integer("columns"), c.buffer("x"), c.buffer<std::uint8_t>("q"),
                       c.buffer<float>("scale"), static_cast<DType>(c.integer("q_dtype"))},
                      stream);
}

// splits of the case, where given, replace those of the plan.
void linear(const Case& c) {
  LinearParams p{dtype(c),       c.integer("rows"),        c.integer("inputs"),           c.integer("outputs"),
                 c.buffer("x"),  c.buffer<float>("x_scale"), c.buffer<std::uint32_t>("weight"), c.buffer("out"),
                 static_cast<DType>(c.integer("x_dtype")), 1, nullptr};
  p.splits = linear_splits(linear_groups(p.outputs), linear_steps(p.inputs, element_size(p.x_dtype)),
                           cuda::multiprocessors());
  if (c.buffer("splits")) p.splits = static_cast<std::int32_t>(c.integer("splits"));
  std::vector<float> partial(p.splits > 1 ? p.splits * p.rows * padded_outputs(p.outputs) : 0, NAN);
  p.partial = partial.data();
  cuda::linear(p, stream);
}

void qkv_prepare(const Case& c) {
  cuda::qkv_prepare({dtype(c), c.integer("rows"), c.integer("heads"), c.integer("kv_heads"), c.integer("head_dim"),
                     c.number("eps"), c.buffer("qkv"), c.buffer("bias"), c.buffer("q_norm"), c.buffer("k_norm"),
                     c.buffer<float>("cos_sin"), c.buffer<std::int32_t>("row_slots"),
                     c.buffer<std::int32_t>("positions"), paged_cache(c), c.buffer("q")},
                    stream);
}

// splits and stages of the case, where given, replace those of the plan.
void block_attention(const Case& c) {
  BlockAttentionParams p{};
  p.dtype = dtype(c);
  p.heads = c.integer("heads");
  p.kv_heads = c.integer("kv_heads");
  p.head_dim = c.integer("head_dim");
  p.scale = c.number("scale");
  p.q = c.buffer("q");
  p.blocks = c.buffer<QueryBlock>("blocks");
  p.cache = paged_cache(c);
  p.out = c.buffer("out");
  p.rows = c.integer("rows");
  p.num_blocks = c.integer("num_blocks");
  AttentionPlan plan =
      attention_plan(element_size(p.dtype), p.head_dim, p.rows, p.heads / p.kv_heads, p.kv_heads, p.num_blocks,
                     p.cache.max_pages * p.cache.page_size, cuda::multiprocessors(), cuda::shared_memory_limit());
  if (c.buffer("splits")) plan.splits = static_cast<std::int32_t>(c.integer("splits"));
  if (c.buffer("stages")) {
    plan.stages = static_cast<std::int32_t>(c.integer("stages"));
    plan.shared_bytes = attention_shared_bytes(element_size(p.dtype), p.head_dim, plan.row_tile, plan.stages);
  }
  p.row_tile = plan.row_tile;
  p.splits = plan.splits;
  p.stages = plan.stages;
  const auto rows = static_cast<std::size_t>(plan.splits > 1 ? plan.splits * p.rows * p.heads : 0);
  std::vector<float> out(rows * p.head_dim, NAN), max_sum(rows * 2, NAN);
  p.partial_out = out.data();
  p.partial_max_sum = max_sum.data();
  cuda::block_attention(p, plan, stream);
}

void row_stats(const Case& c) {
  RowStatsParams p{};
  p.dtype = dtype(c);
  p.rows = c.integer("rows");
  p.vocab = c.integer("vocab");
  p.slots = c.buffer<std::int32_t>("row_slots");
  p.positions = c.buffer<std::int32_t>("positions");
  p.state = block_state(c);
  p.forbidden_id = c.integer("forbidden_id");
  p.parts = c.buffer("parts") ? c.integer("parts") : cuda_vocab_parts(p.vocab);
  p.all_logits = c.buffer("logits");
  p.ids = c.buffer<std::int32_t>("ids");
  p.stats = c.buffer<float>("stats");
  std::vector<LogitStats> partial(p.rows * p.parts, LogitStats{NAN, NAN, NAN, NAN, NAN, NAN, -7, -7, 1});
  p.partial = partial.data();
  cuda::row_stats(p, stream);
}

void unmask(const Case& c) {
  cuda::unmask({block_state(c), c.buffer<std::int32_t>("ids"), c.buffer<float>("stats"),
                c.buffer<std::int32_t>("first_row"), nullptr},
               stream);
}

void advance(const Case& c) {
  AdvanceParams p{};
  p.state = block_state(c);
  p.batch = c.integer("batch");
  p.flags = c.integer("flags");
  p.inputs = step_inputs(c.buffer<std::int32_t>("inputs"), p.batch, p.state.max_block,
                         has_noisy_rows(p.flags, p.state.max_block) ? 2 : 1);
  p.control = c.buffer<LoopControl>("control");
  p.link = {c.buffer<std::int32_t>("link"), c.integer("ring_size")};
  cuda::advance(p, stream);
}

const std::map<std::string, void (*)(const Case&)> ops{
    {"rms_norm", rms_norm},   {"silu_mul", silu_mul}, {"qkv_prepare", qkv_prepare}, {"block_attention", block_attention},
    {"row_stats", row_stats}, {"unmask", unmask},     {"quantize_rows", quantize_rows}, {"linear", linear},
    {"advance", advance},     {"broken", host_sim::broken}};

} // namespace
} // namespace edlm

int main(int count, char** arguments) {
  if (count != 3 || !edlm::ops.count(arguments[1])) edlm::host_sim::fail("usage: run <op> <seed>");
  const edlm::host_sim::Case input;
  if (input.buffer("architecture"))
    edlm::cuda::simulated_architecture = static_cast<int>(input.integer("architecture"));
  edlm::host_sim::machine.seed(std::strtoull(arguments[2], nullptr, 10));
  try {
    edlm::ops.at(arguments[1])(input);
  } catch (const std::exception& error) {
    edlm::host_sim::fail("%s", error.what());
  }
  input.write_outputs();
}
