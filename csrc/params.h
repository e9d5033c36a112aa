// What every op hands to its kernels: plain pointers and sizes, shared by CPU, CUDA and host simulation.
// All arrays are dense and row-major; shapes stand in comments. T is float, bf16 or (CUDA only) f16, as `dtype` says.
#pragma once

#include <cstdint>

#include "block_state.h"

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

constexpr std::int64_t kMaxHeadDim = 1024;

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
  BlockState state;              // temperature, top_k, top_p, seed and step of the slots
  std::int64_t forbidden_id;     // -1 = none
  std::int64_t parts;            // of the vocabulary: the work items
  LogitStats* partial;           // [rows, parts]
  float* const* logits;          // [rows]: a row's [padded_ids(vocab)] scratch, null where nothing is filtered
  std::int32_t* ids;             // [rows, IdColumn::count]
  float* stats;                  // [rows, StatColumn::count]
  const void* all_logits;        // CUDA only, in place of hidden, weight and logits: T [rows, vocab]
};

struct UnmaskParams {
  BlockState state;
  const std::int32_t* ids;       // [rows, IdColumn::count]: of every slot the wanted positions, ascending
  const float* stats;            // [rows, StatColumn::count]
  const std::int32_t* first_row; // [slots], -1 = not denoising
  void* scratch;                 // CPU only: kCommitScratchBytes per position of a block
};

// The inputs of a step, as in edlm_engine/steps/inputs.py: parts of one array, in this order. The records of the block
// state hold the blocks of `slots` sequences; a step has `rows` rows for the first `batch` of them.
struct StepInputs {
  std::int32_t* token_ids;      // [rows]
  std::int32_t* row_slots;      // [rows], -1 = padding
  std::int32_t* positions;      // [rows]
  QueryBlock* query_blocks;     // [2 * batch]
  std::int32_t* head_rows;      // [batch * max_block], and so the two below
  std::int32_t* head_slots;     // -1 = padding
  std::int32_t* head_positions;
  std::int32_t* first_row;      // [slots]
};

// Rows of a slot and kind are the longest block; kinds: 2, noisy and clean ones, or 1, where there are no noisy ones.
constexpr std::int64_t inputs_per_slot(std::int64_t max_block, int kinds) { return 3 * kinds * max_block + 12 + 3 * max_block; }

EDLM_HOST_DEVICE inline StepInputs step_inputs(std::int32_t* at, std::int64_t batch, std::int64_t max_block, int kinds) {
  const std::int64_t rows = kinds * batch * max_block, heads = batch * max_block;
  StepInputs inputs{};
  inputs.token_ids = at;
  inputs.row_slots = at += rows;
  inputs.positions = at += rows;
  inputs.query_blocks = reinterpret_cast<QueryBlock*>(at += rows);
  inputs.head_rows = at += 12 * batch;
  inputs.head_slots = at += heads;
  inputs.head_positions = at += heads;
  inputs.first_row = at + heads;
  return inputs;
}

// What decides, on the device, whether another step follows and which one; beside it the counter of the snapshots and
// the sizes of what was laid out without padding.
struct LoopControl {
  std::int32_t go_on;     // a sequence denoises, and the host has not asked for a pause
  std::int32_t commit;    // the next step has the clean rows of finished blocks to write
  std::int32_t steps;     // of this launch of a device-side loop; the loop's own
  std::int32_t snapshots; // written so far
  std::int32_t rows, query_blocks, heads;
  std::int32_t unused;    // a multiple of 16 bytes
};

// Host memory that the device reads and writes, [1 + ring_size] rows of as many words as the state has. The first row:
// snapshots written, the host's wish to pause, then for every slot its wish to end it. The others: a ring of snapshots.
struct HostLink {
  std::int32_t* words; // null: nobody follows
  std::int64_t ring_size;
};
constexpr std::int64_t kHostSnapshots = 0, kHostPause = 1, kHostStop = 2;

// What advance does, bit by bit.
enum AdvanceFlag : std::int64_t {
  kTake = 1,     // take what the last step left
  kLayOut = 2,   // lay out the next one
  kSnapshot = 4, // before both, copy the state to the ring
  kCompact = 8,  // lay out without padding, one slot behind the other (on the CPU)
  kShift = 16,   // the token at a position is predicted by the row before it
};

struct AdvanceParams {
  BlockState state;
  StepInputs inputs;
  std::int64_t batch;   // slots that the inputs have places for; the others become inactive
  std::int64_t flags;
  LoopControl* control;
  HostLink link;
};

// Blocks of one position that the row before predicts (autoregressive models) have no rows of their own.
constexpr bool has_noisy_rows(std::int64_t flags, std::int64_t max_block) { return !(flags & kShift) || max_block > 1; }

} // namespace edlm
