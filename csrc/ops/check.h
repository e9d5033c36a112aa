// Argument checks of the ops: which argument, what it must be, what it is.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../params.h"

namespace edlm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr std::int64_t kAny = -1;

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// The checks of one op, all of whose tensors must be where `first` is; without it, on the CPU.
class Check {
 public:
  explicit Check(const char* op) : op_(op) {}
  Check(const char* op, const Tensor& first);

  // Whether the CUDA kernels do the work. They read the values of integer tensors without a look from here: to look
  // would mean to wait for them.
  bool on_gpu() const { return on_gpu_; }

  template <class... Parts>
  void that(bool condition, const Parts&... parts) const {
    if (!condition) throw std::invalid_argument(text(op_, ": ", parts...));
  }

  // A dense tensor of the given shape (kAny: any size).
  const Check& dense(const char* name, const Tensor& tensor, ScalarType dtype,
                     std::initializer_list<std::int64_t> shape) const;

  // The same for optional tensors; null where absent.
  void* optional(const char* name, const OptionalTensor& tensor, ScalarType dtype,
                 std::initializer_list<std::int64_t> shape) const;

  // float32 or bfloat16; on a GPU also float16.
  DType dtype(const char* name, const Tensor& tensor) const;

 private:
  bool is_here(const Tensor& tensor) const;

  const char* op_;
  bool on_gpu_ = false;
  std::int32_t gpu_ = -1; // its index; -1: the CPU
};

template <class T = void>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// The records of the block state: int32 [slots, words].
BlockState block_state(const Check& check, const Tensor& state);

PagedCache paged_cache(const Check& check, const Tensor& k_cache, const Tensor& v_cache, const Tensor& page_table,
                       std::int64_t kv_heads, std::int64_t head_dim);

} // namespace edlm
