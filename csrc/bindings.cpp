// Schemas and registration, nothing else.
#include <torch/csrc/stable/library.h>

#include "ops/ops.h"

STABLE_TORCH_LIBRARY(edlm, m) {
  m.def(
      "rms_norm(Tensor(a!) x, Tensor? delta, Tensor weight, float eps, Tensor(b!) out, Tensor(c!)? q=None, "
      "Tensor(d!)? scale=None) -> ()");
  m.def("silu_mul(Tensor gate_up, Tensor(a!) out, Tensor(b!)? q=None, Tensor(c!)? scale=None) -> ()");
  m.def("quantize_rows(Tensor x, Tensor(a!) q, Tensor(b!) scale) -> ()");
  m.def("linear(Tensor x, Tensor? x_scale, Tensor weight, Tensor(a!) out) -> ()");
  m.def(
      "qkv_prepare(Tensor qkv, Tensor? bias, Tensor? q_norm, Tensor? k_norm, Tensor cos_sin, Tensor slots, "
      "Tensor positions, Tensor page_table, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) q, float eps) -> ()");
  m.def(
      "block_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor query_blocks, Tensor page_table, "
      "float scale, Tensor(a!) out) -> ()");
  m.def(
      "row_stats(Tensor hidden, Tensor weight, Tensor state, Tensor slots, Tensor positions, int forbidden_id, "
      "Tensor(a!) ids, Tensor(b!) stats) -> ()");
  m.def(
      "row_stats_quantized(Tensor hidden, Tensor hidden_scale, Tensor weight, int vocab, Tensor state, Tensor slots, "
      "Tensor positions, int forbidden_id, Tensor(a!) ids, Tensor(b!) stats) -> ()");
  m.def("unmask(Tensor(a!) state, Tensor ids, Tensor stats, Tensor first_row) -> ()");
  m.def("advance(Tensor(a!) state, Tensor(b!)? inputs, Tensor(c!) control, Tensor(d!)? link, int flags) -> ()");
}

// Each op finds out itself where its tensors are.
#define EDLM_REGISTER_OPS(m) \
  m.impl("rms_norm", TORCH_BOX(&edlm::rms_norm)); \
  m.impl("silu_mul", TORCH_BOX(&edlm::silu_mul)); \
  m.impl("quantize_rows", TORCH_BOX(&edlm::quantize_rows)); \
  m.impl("linear", TORCH_BOX(&edlm::linear)); \
  m.impl("qkv_prepare", TORCH_BOX(&edlm::qkv_prepare)); \
  m.impl("block_attention", TORCH_BOX(&edlm::block_attention)); \
  m.impl("row_stats", TORCH_BOX(&edlm::row_stats)); \
  m.impl("row_stats_quantized", TORCH_BOX(&edlm::row_stats_quantized)); \
  m.impl("unmask", TORCH_BOX(&edlm::unmask)); \
  m.impl("advance", TORCH_BOX(&edlm::advance));

STABLE_TORCH_LIBRARY_IMPL(edlm, CPU, m) { EDLM_REGISTER_OPS(m) }

#if defined(EDLM_CUDA)
STABLE_TORCH_LIBRARY_IMPL(edlm, CUDA, m) { EDLM_REGISTER_OPS(m) }
#endif
