// The ops' torch side, one file each; their schemas are in bindings.cpp, their meaning in edlm_engine/ops.py.
#pragma once

#include "check.h"

namespace edlm {

void rms_norm(const Tensor& x, const OptionalTensor& delta, const Tensor& weight, double eps, const Tensor& out,
              const OptionalTensor& q, const OptionalTensor& scale);

void silu_mul(const Tensor& gate_up, const Tensor& out, const OptionalTensor& q, const OptionalTensor& scale);

void quantize_rows(const Tensor& x, const Tensor& q, const Tensor& scale);

// Whether quantised rows are bytes or, on a GPU only, e4m3; room for them, none without q; and what their columns must be
// for a product.
DType quantized_dtype(const Check& check, const char* name, const Tensor& rows);
QuantizedOut quantized_out(const Check& check, const OptionalTensor& q, const OptionalTensor& scale, std::int64_t rows,
                           std::int64_t columns);
void check_quantized_inputs(const Check& check, const char* name, const Tensor& rows);

// out = x . weight^T on the current GPU. params: all but what is for CUDA only, x_dtype excepted; weight is checked here.
void linear_on_gpu(const Check& check, LinearParams params, const Tensor& x, const Tensor& weight, void* stream);

void linear(const Tensor& x, const OptionalTensor& x_scale, const Tensor& weight, const Tensor& out);

void qkv_prepare(const Tensor& qkv, const OptionalTensor& bias, const OptionalTensor& q_norm,
                 const OptionalTensor& k_norm, const Tensor& cos_sin, const Tensor& slots, const Tensor& positions,
                 const Tensor& page_table, const Tensor& k_cache, const Tensor& v_cache, const Tensor& q, double eps);

void block_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& query_blocks,
                     const Tensor& page_table, double scale, const Tensor& out);

void row_stats(const Tensor& hidden, const Tensor& weight, const Tensor& state, const Tensor& slots,
               const Tensor& positions, std::int64_t forbidden_id, const Tensor& ids, const Tensor& stats);

void row_stats_quantized(const Tensor& hidden, const Tensor& hidden_scale, const Tensor& weight, std::int64_t vocab,
                         const Tensor& state, const Tensor& slots, const Tensor& positions, std::int64_t forbidden_id,
                         const Tensor& ids, const Tensor& stats);

void unmask(const Tensor& state, const Tensor& ids, const Tensor& stats, const Tensor& first_row);

void advance(const Tensor& state, const OptionalTensor& inputs, const Tensor& control, const OptionalTensor& link,
             std::int64_t flags);

} // namespace edlm
