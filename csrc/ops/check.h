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

// A tensor that an argument's name stands for.
struct Argument {
  const char* name;
  const Tensor* tensor; // null: not given
};

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

  // A dense tensor of the given shape (kAny: any size). No size reaches 2^31, so that products of two are exact in 64
  // bits, whatever the others are: a tensor without elements may have any.
  const Check& dense(const char* name, const Tensor& tensor, ScalarType dtype,
                     std::initializer_list<std::int64_t> shape) const;

  // The same for optional tensors; null where absent.
  void* optional(const char* name, const OptionalTensor& tensor, ScalarType dtype,
                 std::initializer_list<std::int64_t> shape) const;

  // Rows of at least one column: without, there could be any number of them.
  void columns(const char* name, std::int64_t columns) const {
    that(columns > 0, name, ": want at least one column, got 0");
  }

  // A multiple of 16 up to kMaxHeadDim.
  void head_dim(const char* name, std::int64_t dim) const;

  // No memory is both in what the op writes and in what it was told where to write or to read: that would change
  // behind the checks.
  void apart(std::initializer_list<Argument> written, std::initializer_list<Argument> read) const;

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
