#include <vector>

#include "../cpu/dispatch.h"
#include "gpu.h"
#include "ops.h"
#include "parallel.h"

namespace edlm {
namespace {

constexpr std::int64_t kMaxRows = std::int64_t{1} << 31; // what an AttentionTile counts with
constexpr int kBlockFields = sizeof(QueryBlock) / sizeof(std::int32_t);

void check_block(const Check& check, const QueryBlock& b, std::int64_t i, std::int64_t rows, const PagedCache& cache) {
  check.that(b.slot < cache.slots && b.slot >= -1, "query_blocks[", i, "]: slot: want -1 or a row of page_table (",
             cache.slots, "), got ", b.slot);
  check.that(b.length > 0 && b.row >= 0 && b.row <= rows - b.length, "query_blocks[", i, "]: want rows within the ",
             rows, " of q, got row ", b.row, ", length ", b.length);
  const std::int64_t least = b.causal ? b.length : 1, most = cache.max_pages * cache.page_size;
  check.that(b.kv_len >= least && b.kv_len <= most, "query_blocks[", i, "]: kv_len: want ", least, " to ", most,
             ", got ", b.kv_len);
  for (std::int64_t entry = 0; entry < ceil_div(b.kv_len, cache.page_size); ++entry) {
    const std::int64_t page = cache.page_table[b.slot * cache.max_pages + entry];
    check.that(page >= 0 && page < cache.pages, "page_table[", b.slot, ", ", entry, "]: want a page of the cache (",
               cache.pages, "), got ", page);
  }
}

// All blocks, which together have at most the rows of q: two that shared some would write them twice, and the memory
// for parts of the keys would know no bound.
void check_blocks(const Check& check, const BlockAttentionParams& p) {
  std::int64_t rows = 0;
  for (std::int64_t i = 0; i < p.num_blocks; ++i) {
    if (p.blocks[i].slot == -1) continue;
    check_block(check, p.blocks[i], i, p.rows, p.cache);
    rows += p.blocks[i].length;
  }
  check.that(rows <= p.rows, "query_blocks: want at most the ", p.rows, " rows of q in all, got ", rows);
}

// The work items, the cost of one, and the rows of partial results.
struct Work {
  std::vector<AttentionTile> tiles;
  std::int64_t cost = 0, partial_rows = 0;
};

Work tiles_of(const Check& check, const BlockAttentionParams& p) {
  Work work;
  const std::int64_t group = p.heads / p.kv_heads;
  double total = 0;
  for (std::int32_t b = 0; b < p.num_blocks; ++b) {
    if (p.blocks[b].slot < 0) continue;
    const std::int64_t packed = p.blocks[b].length * group;
    total += 2.0 * packed * p.kv_heads * p.blocks[b].kv_len * p.head_dim;
    const std::int64_t splits = key_splits(p.blocks[b].kv_len, !p.blocks[b].causal || p.blocks[b].length == 1,
                                           ceil_div(packed, kRowTile) * p.kv_heads);
    check.that(work.partial_rows + splits * packed * p.kv_heads < kMaxRows, "query_blocks[", b, "]: want less than ",
               kMaxRows, " rows of heads and parts of the keys in all, got a kv_len of ", p.blocks[b].kv_len);
    for (std::int32_t head = 0; head < p.kv_heads; ++head)
      for (std::int64_t first = 0; first < packed; first += kRowTile) {
        const std::int64_t count = std::min(kRowTile, packed - first);
        for (std::int64_t split = 0; split < splits; ++split) {
          work.tiles.push_back({b, head, static_cast<std::int32_t>(first), static_cast<std::int32_t>(count),
                                static_cast<std::int32_t>(splits), static_cast<std::int32_t>(split * kKeySplit),
                                static_cast<std::int32_t>(work.partial_rows)});
          work.partial_rows += splits > 1 ? count : 0;
        }
      }
  }
  if (!work.tiles.empty()) work.cost = static_cast<std::int64_t>(total / kMacsPerElement / work.tiles.size());
  return work;
}

[[maybe_unused]] void attend_on_gpu(const Check& check, BlockAttentionParams& p, const Tensor& q) {
  const GpuScope gpu(q);
  const DeviceLimits limits = device_limits();
  const AttentionPlan plan =
      attention_plan(element_size(p.dtype), p.head_dim, p.rows, p.heads / p.kv_heads, p.kv_heads, p.num_blocks,
                     p.cache.max_pages * p.cache.page_size, limits.multiprocessors, limits.shared_bytes);
  check.that(plan.tiles <= kMaxGridZ, "q: want at most ", kMaxGridZ, " tiles of rows, got ", plan.tiles);
  p.row_tile = plan.row_tile;
  p.splits = plan.splits;
  p.stages = plan.stages;
  const std::int64_t partial_rows = plan.splits > 1 ? plan.splits * p.rows * p.heads : 0;
  const Tensor partial = workspace(q, partial_rows * (p.head_dim + 2) * sizeof(float));
  p.partial_out = data<float>(partial);
  p.partial_max_sum = p.partial_out + partial_rows * p.head_dim;
  launch_block_attention(p, plan, gpu.stream());
}

} // namespace

void block_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& query_blocks,
                     const Tensor& page_table, double scale, const Tensor& out) {
  const Check check("edlm::block_attention", q);
  BlockAttentionParams params{};
  params.dtype = check.dtype("q", q);
  const ScalarType type = q.scalar_type();
  check.dense("q", q, type, {kAny, kAny, kAny});
  const std::int64_t rows = q.size(0), heads = q.size(1), dim = q.size(2);
  check.head_dim("q", dim);
  check.dense("out", out, type, {rows, heads, dim})
      .dense("k_cache", k_cache, type, {kAny, kAny, kAny, dim})
      .dense("query_blocks", query_blocks, ScalarType::Int, {kAny, kBlockFields});
  params.heads = heads;
  params.kv_heads = k_cache.size(1);
  params.head_dim = dim;
  params.scale = static_cast<float>(scale);
  check.that(params.kv_heads > 0 && heads % params.kv_heads == 0, "q: want a multiple of the ", params.kv_heads,
             " heads of k_cache, got ", heads);
  params.cache = paged_cache(check, k_cache, v_cache, page_table, params.kv_heads, dim);
  check.apart({{"out", &out}}, {{"query_blocks", &query_blocks}, {"page_table", &page_table}});
  params.q = data(q);
  params.out = data(out);
  params.blocks = data<QueryBlock>(query_blocks);
  params.rows = rows;
  params.num_blocks = query_blocks.size(0);
  if constexpr (kHasGpu)
    if (check.on_gpu()) return attend_on_gpu(check, params, q);
  check_blocks(check, params);

  const Work work = tiles_of(check, params);
  const auto tiles = static_cast<std::int64_t>(work.tiles.size());
  params.tiles = work.tiles.data();
  params.partial = reinterpret_cast<float*>(scratch<1>(work.partial_rows * (dim + 2) * sizeof(float)));
  const cpu::Kernels& kernels = cpu::kernels();
  const std::int64_t bytes = kernels.block_attention_workspace(params);
  parallel(tiles, work.cost, [&](std::int64_t begin, std::int64_t end) {
    kernels.block_attention(params, begin, end, scratch<0>(bytes));
  });
  if (work.partial_rows > 0)
    parallel(tiles, work.partial_rows * dim / tiles,
             [&](std::int64_t begin, std::int64_t end) { kernels.block_attention_merge(params, begin, end); });
}

} // namespace edlm
