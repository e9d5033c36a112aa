// What every op hands to its kernels: plain pointers and sizes, shared by CPU, CUDA and host simulation.
// All arrays are dense and row-major; shapes stand in comments. T is float, bf16 or (CUDA only) f16, as `dtype` says.
#pragma once

#include <cstdint>

namespace edlm {

struct bf16 {
  std::uint16_t bits;
};

struct f16 {
  std::uint16_t bits;
};

// Four exponent bits (bias 7), three of mantissa, no infinities: up to 448; "e4m3fn" in torch.
struct e4m3 {
  std::uint8_t bits;
};

enum class DType : std::int32_t { f32, bf16, f16, u8, e4m3 }; // the last two only of quantised rows

constexpr std::int64_t element_size(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::bf16 || dtype == DType::f16 ? 2 : 1;
}

// Where an op writes its result a second time, quantised as by QuantizeRowsParams; q null: nowhere.
struct QuantizedOut {
  std::uint8_t* q; // [rows, columns]
  float* scale;    // [rows]
  DType dtype;     // u8 or e4m3
};

struct RmsNormParams {
  DType dtype;
  std::int64_t rows, hidden;
  float eps;
  void* x;            // T [rows, hidden], += delta
  const void* delta;  // T [rows, hidden] or null
  const void* weight; // T [hidden]
  void* out;          // T [rows, hidden]
  QuantizedOut quantized;
};

struct SiluMulParams {
  DType dtype;
  std::int64_t rows, inner;
  const void* gate_up; // T [rows, 2, inner]
  void* out;           // T [rows, inner]
  QuantizedOut quantized;
};

// Rows of x as bytes. u8: round(x / scale) + 128, and the scale that makes the largest +-127. e4m3 (CUDA only): x /
// scale rounded, and the scale that makes the largest +-448.
struct QuantizeRowsParams {
  DType dtype;
  std::int64_t rows, columns;
  const void* x;   // T [rows, columns]
  std::uint8_t* q; // [rows, columns]
  float* scale;    // [rows]
  DType q_dtype;   // u8 or e4m3
};

// out = x . w^T. How the weight lies is a matter of the device.
// CPU: in panels of kPanel outputs, [panels, inputs / per unit, kPanel] units of four bytes; an int8 panel has two more
// rows: the sums of its columns, and their scales.
// CUDA: in groups of kGroupOutputs outputs, as the tensor cores take them: see plan_cuda.h.
struct LinearParams {
  DType dtype; // of out, and on the CPU of x and weight unless they are int8
  std::int64_t rows, inputs, outputs;
  const void* x;                // T [rows, inputs]; or quantised rows
  const float* x_scale;         // [rows] of quantised rows, else null
  const std::uint32_t* weight;
  void* out;                    // T [rows, outputs]
  // CUDA only:
  DType x_dtype;                // bf16, f16, u8 (then the weight is int8) or e4m3
  std::int32_t splits;          // linear_splits() in plan_cuda.h
  void* partial;                // float, int32 if x is u8: [splits, rows, padded_outputs()]; null with one split
};

// A key/value cache of pages: k_cache and v_cache are T [pages, kv_heads, page_size, head_dim], and position p of
// slot s lies in page page_table[s, p / page_size] at offset p % page_size.
struct PagedCache {
  void* k_cache;
  void* v_cache;
  const std::int32_t* page_table; // [slots, max_pages]
  std::int64_t slots, max_pages, pages, page_size;
};

struct QkvPrepareParams {
  DType dtype;
  std::int64_t rows, heads, kv_heads, head_dim;
  float eps;
  const void* qkv;               // T [rows, heads + 2 * kv_heads, head_dim]: q heads, k heads, v heads
  const void* bias;              // T [(heads + 2 * kv_heads) * head_dim] or null
  const void* q_norm;            // T [head_dim] or null
  const void* k_norm;            // T [head_dim] or null
  const float* cos_sin;          // [max_positions, head_dim]: cos of head_dim / 2 angles, then their sin
  const std::int32_t* slots;     // [rows], -1 = padding
  const std::int32_t* positions; // [rows]
  PagedCache cache;
  void* q;                       // T [rows, heads, head_dim]
};

struct QueryBlock {
  std::int32_t slot, start, length, kv_len, causal, row;
};

// One tile of a query block: packed rows [first, first + count) of one kv head. Packed row i is row i / group of
// the block and head i % group of the kv head's group of query heads. Of `splits` parts of the keys this is the one from
// first_key on; its results are the rows [partial, partial + count), those of the next part follow.
struct AttentionTile {
  std::int32_t block, kv_head, first, count, splits, first_key, partial;
};

struct BlockAttentionParams {
  DType dtype;
  std::int64_t heads, kv_heads, head_dim;
  float scale;
  const void* q;              // T [rows, heads, head_dim]
  const QueryBlock* blocks;   // [n]
  const AttentionTile* tiles; // the work items
  float* partial;             // CPU: [partial rows, head_dim + 2]: output times sum, maximum, sum
  PagedCache cache;
  void* out;                  // T [rows, heads, head_dim]
  // CUDA only:
  std::int64_t rows, num_blocks;
  std::int32_t row_tile, splits, stages; // attention_plan() in plan_cuda.h
  float* partial_out;         // [splits, rows, heads, head_dim], null with one split, and so the next
  float* partial_max_sum;     // [splits, rows, heads, 2]
};

// Mergeable statistics of some logits z of one row, m = z1 being their maximum.
struct LogitStats {
  float z1, z2;          // largest and second largest logit (equal where the maximum is tied)
  float sum, weighted;   // sum of e^(z - z1), and of (z - z1) e^(z - z1)
  float best, z_best;    // largest z / temperature + gumbel, and its z
  std::int32_t id1, id_best;
  std::int32_t bad;      // 1 if a logit is NaN or +inf
};

struct RowStatsParams {
  DType dtype;
  std::int64_t rows, hidden_size, vocab;
  const void* hidden;            // T [rows, hidden_size], or quantised rows
  const float* hidden_scale;     // [rows] of quantised rows, else null
  const void* weight;            // T [vocab, hidden_size], or int8 panels as in LinearParams
  const std::int32_t* slots;     // [rows], -1 = padding
  const std::int32_t* positions; // [rows]
  const float* temperature;      // [slots], and so the four below
  const std::int32_t* top_k;     // 0 = off
  const float* top_p;            // 1 = off
  const std::int64_t* seed;
  const std::int32_t* step;
  std::int64_t forbidden_id;     // -1 = none
  std::int64_t parts;            // of the vocabulary: the work items
  LogitStats* partial;           // [rows, parts]
  float* const* logits;          // [rows]: a row's [padded_ids(vocab)] scratch, null where nothing is filtered
  std::int32_t* ids;             // [rows, 2]: argmax, chosen
  float* stats;                  // [rows, 5]: p1, p2, entropy, log-sum-exp, p(chosen)
  const void* all_logits;        // CUDA only, in place of hidden, weight and logits: T [rows, vocab]
};

struct UnmaskParams {
  std::int64_t slots, max_block;
  const std::int32_t* ids;             // [rows, 2]
  const float* stats;                  // [rows, 5]
  const std::int32_t* first_row;       // [slots], -1 = not denoising; so are all below where not said otherwise
  const float* threshold;              // NaN = fixed schedule
  const std::int32_t* steps_per_block; // 0 = no bound
  const std::int32_t* block_length;
  std::int32_t* tokens;                // [slots, max_block], and so the three below
  float* confidence;
  std::int32_t* commit_step;
  std::uint8_t* masked;
  std::int32_t* num_masked;
  std::int32_t* step;
  std::int32_t* status;                // 1 = block finished, 0 = masks left, -1 = bad statistics
};

// What decides, on the device, whether another step follows and which one; beside it the counter of the snapshots.
struct LoopControl {
  std::int32_t go_on;     // a sequence denoises, and the host has not asked for a pause
  std::int32_t commit;    // the next step has the clean rows of finished blocks to write
  std::int32_t steps;     // of this launch of a device-side loop; the loop's own
  std::int32_t snapshots; // written so far
};

// Host memory that the device reads and writes: snapshots, pause, then a flag per slot that ends it.
constexpr std::int64_t kHostSnapshots = 0, kHostPause = 1, kHostStop = 2;

// A batch of blocks between two steps. Inputs of a step have fixed places: `batch` slots with max_block noisy rows each
// (none for autoregressive models: mask_id -1), then max_block clean rows each.
struct AdvanceParams {
  std::int64_t slots, max_block, batch, stop_ids_per_slot;
  std::int32_t mask_id;                // -1: autoregressive
  bool shift;                          // the token at a position is predicted by the row before it
  bool lay_out_only;                   // nothing was computed since the last call
  // state; per position [slots, max_block], the others [slots]
  std::int32_t* tokens;
  std::uint8_t* masked;
  std::int32_t* clean;                 // tokens of the `pending` positions before the block
  std::int32_t* num_masked;
  std::int32_t* block_length;
  std::int32_t* step;
  std::int32_t* status;
  std::int32_t* active;                // 1: denoises
  std::int32_t* start;                 // position of the block
  std::int32_t* pending;               // positions before it whose keys and values are still to be written
  const std::int32_t* end;             // position behind the last block
  const std::int32_t* full_length;     // of every block but the last
  const std::int32_t* stop_ids;        // [slots, stop_ids_per_slot], -1 = none
  // the next step's inputs, as in forward.py
  std::int32_t* token_ids;             // [rows]
  std::int32_t* row_slots;             // [rows], -1 = padding
  std::int32_t* positions;             // [rows]
  QueryBlock* query_blocks;            // [2 * batch]: noisy, clean
  std::int32_t* head_rows;             // [batch * max_block], and so the two below
  std::int32_t* head_slots;            // -1 = padding
  std::int32_t* head_positions;
  std::int32_t* first_row;             // [slots]
  // what the host reads
  LoopControl* control;
  const std::uint8_t* snapshot;        // [snapshot_bytes], a part of the state
  std::uint8_t* ring;                  // [ring_size, snapshot_bytes], host memory
  std::int64_t snapshot_bytes, ring_size; // bytes: a multiple of 16
  std::int32_t* host;                  // [kHostStop + slots]
};

} // namespace edlm
