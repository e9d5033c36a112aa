#include "check.h"

namespace edlm {
namespace {

constexpr std::int64_t kMaxSize = std::int64_t{1} << 31; // of a dimension

std::string shape_text(const std::int64_t* sizes, std::size_t dims) {
  std::string out = "[";
  for (std::size_t i = 0; i < dims; ++i) {
    if (i > 0) out += ", ";
    out += sizes[i] == kAny ? "any" : std::to_string(sizes[i]);
  }
  return out + "]";
}

bool fits(const std::int64_t* sizes, std::size_t dims, std::initializer_list<std::int64_t> shape) {
  if (dims != shape.size()) return false;
  for (const std::int64_t size : shape)
    if (const std::int64_t got = *sizes++; size != kAny && got != size) return false;
  return true;
}

bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

std::size_t size_of(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Int ? 4 : is_floating(dtype) ? 2 : 1; // what the ops take
}

// The bytes of a tensor that dense() has let pass; none of one that is not given.
struct Memory {
  explicit Memory(const Tensor* tensor) {
    if (!tensor) return;
    begin = static_cast<const char*>(tensor->data_ptr());
    end = begin + tensor->numel() * static_cast<std::int64_t>(size_of(tensor->scalar_type()));
  }

  bool overlaps(const Memory& other) const {
    return begin != end && other.begin != other.end && begin < other.end && other.begin < end;
  }

  const char *begin = nullptr, *end = nullptr;
};

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
  const auto sizes = tensor.sizes();
  if (!here || !contiguous || tensor.scalar_type() != dtype || !fits(sizes.data(), sizes.size(), shape))
    that(false, name, ": want contiguous ", toString(dtype), " ", shape_text(shape.begin(), shape.size()),
         " on ", gpu_ < 0 ? "cpu" : "cuda:" + std::to_string(gpu_), ", got ", contiguous ? "" : "non-contiguous ",
         toString(tensor.scalar_type()), " ", shape_text(sizes.data(), sizes.size()),
         here ? "" : " on another device");
  for (const std::int64_t size : sizes) that(size < kMaxSize, name, ": want sizes below 2^31, got ", size);
  if (on_gpu_ && is_floating(dtype)) // the kernels move 16 bytes at a time
    that(reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % 16 == 0, name,
         ": want memory aligned to 16 bytes, got a view that is not");
  return *this;
}

void Check::head_dim(const char* name, std::int64_t dim) const {
  that(dim > 0 && dim % 16 == 0 && dim <= kMaxHeadDim, name, ": want a head size that is a multiple of 16, up to ",
       kMaxHeadDim, ", got ", dim);
}

void Check::apart(std::initializer_list<Argument> written, std::initializer_list<Argument> read) const {
  for (const Argument& r : read) {
    const Memory memory(r.tensor);
    for (const Argument& w : written)
      that(!memory.overlaps(Memory(w.tensor)), w.name, ": want memory apart from ", r.name, ", got some of its");
  }
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
