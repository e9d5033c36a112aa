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

bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

} // namespace

Check::Check(const char* op, const Tensor& first) : op_(op) {
  if (first.is_cuda()) gpu_ = first.get_device_index();
#if defined(EDLM_HOST_SIM)
  on_gpu_ = true; // which is then simulated on the CPU's tensors
#else
  on_gpu_ = first.is_cuda();
#endif
}

bool Check::is_here(const Tensor& tensor) const {
  return gpu_ < 0 ? tensor.is_cpu() : tensor.is_cuda() && tensor.get_device_index() == gpu_;
}

const Check& Check::dense(const char* name, const Tensor& tensor, ScalarType dtype,
                          std::initializer_list<std::int64_t> shape) const {
  const bool contiguous = tensor.is_contiguous(), here = is_here(tensor);
  if (!here || !contiguous || tensor.scalar_type() != dtype || !fits(tensor, shape))
    that(false, name, ": want contiguous ", toString(dtype), " ", shape_text(shape.begin(), shape.size()), " on ",
         gpu_ < 0 ? "cpu" : "cuda:" + std::to_string(gpu_), ", got ", contiguous ? "" : "non-contiguous ",
         toString(tensor.scalar_type()), " ", shape_text(tensor.sizes().data(), tensor.dim()),
         here ? "" : " on another device");
  if (on_gpu_ && is_floating(dtype)) // the kernels move 16 bytes at a time
    that(reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % 16 == 0, name,
         ": want memory aligned to 16 bytes, got a view that is not");
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
  if (type == ScalarType::Float) return DType::f32;
  if (type == ScalarType::BFloat16) return DType::bf16;
  that(type == ScalarType::Half && on_gpu_, name, ": want Float", on_gpu_ ? ", Half" : "", " or BFloat16, got ",
       toString(type));
  return DType::f16;
}

BlockState block_state(const Check& check, const Tensor& state) {
  check.dense("state", state, ScalarType::Int, {kAny, kAny});
  const std::int64_t words = state.size(1), max_block = max_block_of(words);
  check.that(max_block > 0, "state: want records of ", kSlotWords, " words and ", kPositionWords,
             " for every position of the longest block, rounded up to a multiple of 4, got ", words);
  return {data<std::int32_t>(state), state.size(0), max_block, words};
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
