#include "../cpu/dispatch.h"
#include "gpu.h"
#include "ops.h"
#include "parallel.h"

namespace edlm {
namespace {

void check_rows(const Check& check, const QkvPrepareParams& p, std::int64_t max_positions) {
  const PagedCache& cache = p.cache;
  for (std::int64_t r = 0; r < p.rows; ++r) {
    const std::int64_t slot = p.slots[r], position = p.positions[r];
    if (slot == -1) continue;
    check.that(slot >= 0 && slot < cache.slots, "slots[", r, "]: want -1 or a row of page_table (", cache.slots,
               "), got ", slot);
    check.that(position >= 0 && position < max_positions, "positions[", r, "]: want less than the ", max_positions,
               " rows of cos_sin, got ", position);
    const std::int64_t entry = position / cache.page_size;
    check.that(entry < cache.max_pages, "positions[", r, "]: ", position, " lies beyond the ", cache.max_pages,
               " pages of a slot");
    const std::int64_t page = cache.page_table[slot * cache.max_pages + entry];
    check.that(page >= 0 && page < cache.pages, "page_table[", slot, ", ", entry, "]: want a page of the cache (",
               cache.pages, "), got ", page);
  }
}

} // namespace

void qkv_prepare(const Tensor& qkv, const OptionalTensor& bias, const OptionalTensor& q_norm,
                 const OptionalTensor& k_norm, const Tensor& cos_sin, const Tensor& slots, const Tensor& positions,
                 const Tensor& page_table, const Tensor& k_cache, const Tensor& v_cache, const Tensor& q, double eps) {
  const Check check("edlm::qkv_prepare", qkv);
  QkvPrepareParams params{};
  params.dtype = check.dtype("qkv", qkv);
  const ScalarType type = qkv.scalar_type();
  check.dense("q", q, type, {kAny, kAny, kAny});
  const std::int64_t rows = q.size(0), heads = q.size(1), dim = q.size(2);
  check.head_dim("q", dim);
  check.dense("k_cache", k_cache, type, {kAny, kAny, kAny, dim});
  const std::int64_t kv_heads = k_cache.size(1), width = (heads + 2 * kv_heads) * dim;
  params.cache = paged_cache(check, k_cache, v_cache, page_table, kv_heads, dim);
  check.dense("qkv", qkv, type, {rows, width})
      .dense("cos_sin", cos_sin, ScalarType::Float, {kAny, dim})
      .dense("slots", slots, ScalarType::Int, {rows})
      .dense("positions", positions, ScalarType::Int, {rows});
  check.apart({{"k_cache", &k_cache}, {"v_cache", &v_cache}, {"q", &q}},
              {{"slots", &slots}, {"positions", &positions}, {"page_table", &page_table}});
  params.rows = rows;
  params.heads = heads;
  params.kv_heads = kv_heads;
  params.head_dim = dim;
  params.eps = static_cast<float>(eps);
  params.qkv = data(qkv);
  params.bias = check.optional("bias", bias, type, {width});
  params.q_norm = check.optional("q_norm", q_norm, type, {dim});
  params.k_norm = check.optional("k_norm", k_norm, type, {dim});
  params.cos_sin = data<float>(cos_sin);
  params.slots = data<std::int32_t>(slots);
  params.positions = data<std::int32_t>(positions);
  params.q = data(q);
  if constexpr (kHasGpu)
    if (check.on_gpu()) return launch_qkv_prepare(params, GpuScope(q).stream());
  check_rows(check, params, cos_sin.size(0));

  parallel(rows, width, [&](std::int64_t begin, std::int64_t end) { cpu::kernels().qkv_prepare(params, begin, end); });
}

} // namespace edlm
