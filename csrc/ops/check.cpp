#include "check.h"

namespace edlm {
namespace {

std::string shape_text(const std::int64_t* sizes, std::size_t dims) {
  std::string out = "[";
  for (std::size_t i = 0; i < dims; ++i) {
    if (i > 0) out += ", ";
    out += sizes[i] == kAny ? "any" : std::to_string(sizes[i]);
  }
  return out + "]";
}

bool fits(const Tensor& tensor, std::initializer_list<std::int64_t> shape) {
  if (tensor.dim() != static_cast<std::int64_t>(shape.size())) return false;
  std::int64_t i = 0;
  for (const std::int64_t size : shape)
    if (const std::int64_t got = tensor.size(i++); size != kAny && got != size) return false;
  return true;
}

} // namespace

const Check& Check::dense(const char* name, const Tensor& tensor, ScalarType dtype,
                          std::initializer_list<std::int64_t> shape) const {
  const bool contiguous = tensor.is_contiguous();
  if (tensor.is_cpu() && contiguous && tensor.scalar_type() == dtype && fits(tensor, shape)) return *this;
  that(false, name, ": want contiguous ", toString(dtype), " ", shape_text(shape.begin(), shape.size()),
       " on cpu, got ", contiguous ? "" : "non-contiguous ", toString(tensor.scalar_type()), " ",
       shape_text(tensor.sizes().data(), tensor.dim()), tensor.is_cpu() ? "" : " on another device");
  return *this;
}

void* Check::optional(const char* name, const OptionalTensor& tensor, ScalarType dtype,
                      std::initializer_list<std::int64_t> shape) const {
  if (!tensor) return nullptr;
  dense(name, *tensor, dtype, shape);
  return data(*tensor);
}

DType Check::dtype(const char* name, const Tensor& tensor) const {
  const ScalarType type = tensor.scalar_type();
  that(type == ScalarType::Float || type == ScalarType::BFloat16, name, ": want Float or BFloat16, got ",
       toString(type));
  return type == ScalarType::Float ? DType::f32 : DType::bf16;
}

PagedCache paged_cache(const Check& check, const Tensor& k_cache, const Tensor& v_cache, const Tensor& page_table,
                       std::int64_t kv_heads, std::int64_t head_dim) {
  const ScalarType type = k_cache.scalar_type();
  check.dense("k_cache", k_cache, type, {kAny, kv_heads, kAny, head_dim});
  const std::int64_t pages = k_cache.size(0), page_size = k_cache.size(2);
  check.dense("v_cache", v_cache, type, {pages, kv_heads, page_size, head_dim});
  check.dense("page_table", page_table, ScalarType::Int, {kAny, kAny});
  check.that(page_size >= 16 && (page_size & (page_size - 1)) == 0,
             "k_cache: want a page size that is a power of two and at least 16, got ", page_size);
  return {data(k_cache), data(v_cache), data<std::int32_t>(page_table), page_table.size(0), page_table.size(1), pages,
          page_size};
}

} // namespace edlm
