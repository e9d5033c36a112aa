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

void row_stats(const Tensor& hidden, const Tensor& weight, const Tensor& slots, const Tensor& positions,
               const Tensor& temperature, const Tensor& top_k, const Tensor& top_p, const Tensor& seed,
               const Tensor& step, std::int64_t forbidden_id, const Tensor& ids, const Tensor& stats);

void row_stats_int8(const Tensor& hidden, const Tensor& hidden_scale, const Tensor& weight, std::int64_t vocab,
                    const Tensor& slots, const Tensor& positions, const Tensor& temperature, const Tensor& top_k,
                    const Tensor& top_p, const Tensor& seed, const Tensor& step, std::int64_t forbidden_id,
                    const Tensor& ids, const Tensor& stats);

void unmask(const Tensor& ids, const Tensor& stats, const Tensor& first_row, const Tensor& threshold,
            const Tensor& steps_per_block, const Tensor& block_length, const Tensor& tokens, const Tensor& confidence,
            const Tensor& commit_step, const Tensor& masked, const Tensor& num_masked, const Tensor& step,
            const Tensor& status);

void advance(const Tensor& tokens, const Tensor& masked, const Tensor& clean, const Tensor& num_masked,
             const Tensor& block_length, const Tensor& step, const Tensor& status, const Tensor& active,
             const Tensor& start, const Tensor& pending, const Tensor& end, const Tensor& full_length,
             const Tensor& stop_ids, const Tensor& token_ids, const Tensor& row_slots, const Tensor& positions,
             const Tensor& query_blocks, const Tensor& head_rows, const Tensor& head_slots,
             const Tensor& head_positions, const Tensor& first_row, const Tensor& control, const Tensor& snapshot,
             const Tensor& ring, const Tensor& host, std::int64_t mask_id, bool shift, bool lay_out_only);

} // namespace edlm
