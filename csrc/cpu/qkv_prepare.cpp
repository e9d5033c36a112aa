#include "kernels.h"
#include "vec.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

template <class T>
EDLM_INLINE Vec biased(const T* x, const T* bias, std::int64_t i, std::int64_t n) {
  return bias ? load(x + i, n) + load(bias + i, n) : load(x + i, n);
}

template <class T>
void copy_head(const T* x, const T* bias, T* out, std::int64_t dim) {
  for (std::int64_t i = 0; i < dim; i += kWidth) store(out + i, biased(x, bias, i, dim - i), dim - i);
}

// Normalise (if norm is given), then rotate: (a, b) -> (a cos - b sin, b cos + a sin) for the halves a and b.
template <class T>
void rotate_head(const T* x, const T* bias, const T* norm, const float* cos_sin, T* out, std::int64_t dim, float eps) {
  float scale = 1.0f;
  if (norm) {
    Vec squares{};
    for (std::int64_t i = 0; i < dim; i += kWidth) {
      const Vec v = biased(x, bias, i, dim - i);
      squares = fma(v, v, squares);
    }
    scale = 1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(dim) + eps);
  }
  const std::int64_t half = dim / 2;
  auto normed = [&](std::int64_t i, std::int64_t n) {
    const Vec v = biased(x, bias, i, n);
    return norm ? v * scale * load(norm + i, n) : v;
  };
  for (std::int64_t i = 0; i < half; i += kWidth) {
    const std::int64_t n = half - i;
    const Vec a = normed(i, n), b = normed(i + half, n);
    const Vec cos = load(cos_sin + i, n), sin = load(cos_sin + half + i, n);
    store(out + i, fma(a, cos, -(b * sin)), n);
    store(out + i + half, fma(b, cos, a * sin), n);
  }
}

template <class T>
void rows(const QkvPrepareParams& p, std::int64_t begin, std::int64_t end) {
  const PagedCache& cache = p.cache;
  const std::int64_t dim = p.head_dim, width = (p.heads + 2 * p.kv_heads) * dim;
  const auto* bias = static_cast<const T*>(p.bias);
  auto bias_at = [&](std::int64_t head) { return bias ? bias + head * dim : nullptr; };
  for (std::int64_t r = begin; r < end; ++r) {
    if (p.slots[r] < 0) continue;
    const T* x = static_cast<const T*>(p.qkv) + r * width;
    const std::int64_t position = p.positions[r];
    const float* cos_sin = p.cos_sin + position * dim;
    T* q = static_cast<T*>(p.q) + r * p.heads * dim;
    for (std::int64_t h = 0; h < p.heads; ++h)
      rotate_head(x + h * dim, bias_at(h), static_cast<const T*>(p.q_norm), cos_sin, q + h * dim, dim, p.eps);
    const std::int64_t page = cache.page_table[p.slots[r] * cache.max_pages + position / cache.page_size];
    for (std::int64_t h = 0; h < p.kv_heads; ++h) {
      const std::int64_t k = p.heads + h, v = k + p.kv_heads;
      const std::int64_t at = ((page * p.kv_heads + h) * cache.page_size + position % cache.page_size) * dim;
      rotate_head(x + k * dim, bias_at(k), static_cast<const T*>(p.k_norm), cos_sin,
                  static_cast<T*>(cache.k_cache) + at, dim, p.eps);
      copy_head(x + v * dim, bias_at(v), static_cast<T*>(cache.v_cache) + at, dim);
    }
  }
}

} // namespace

void qkv_prepare(const QkvPrepareParams& p, std::int64_t begin, std::int64_t end) {
  p.dtype == DType::f32 ? rows<float>(p, begin, end) : rows<bf16>(p, begin, end);
}

} // namespace edlm::cpu::EDLM_ISA
