// From one denoising step to the next: what a step left is taken over, a finished block makes place for the next one,
// and the rows of the next step are laid out.
#pragma once

#include "../block_state.h"
#include "../params.h"

namespace edlm {

EDLM_DEVICE bool stops(const SlotFields& slot, std::int32_t token) {
  bool found = false;
  for (int i = 0; i < kStopIds; ++i) found |= slot.stop_ids[i] == token;
  return found;
}

// Whether a token that ends the text has nothing but tokens before it. What was given is no part of the text.
template <class Lanes>
EDLM_DEVICE bool text_ended(const Block& b, const Lanes& lanes) {
  const int length = b.slot.block_length;
  int first_open = length, first_stop = length;
  for (int j = lanes.lane(); j < length; j += lanes.count()) {
    if (b.open[j])
      first_open = j < first_open ? j : first_open;
    else if (!b.given[j] && stops(b.slot, b.tokens[j]))
      first_stop = j < first_stop ? j : first_stop;
  }
  return lanes.min(first_stop) < lanes.min(first_open);
}

// A block of masks. The lanes must have read what it overwrites.
template <class Lanes>
EDLM_DEVICE void begin_block(const Block& b, int length, int max_block, const Lanes& lanes) {
  for (int j = lanes.lane(); j < max_block; j += lanes.count()) {
    b.tokens[j] = b.slot.mask_id;
    b.open[j] = b.wanted[j] = j < length ? 1 : 0;
    b.given[j] = 0;
  }
  if (lanes.lane() == 0) {
    b.slot.block_length = length;
    b.slot.step = b.slot.status = 0;
  }
}

// What a step has left of a slot that took part in it: its clean rows are written, its block may be finished, its text
// may be. shift: the token at a position is predicted by the row before it, so that the last clean row stays pending.
template <class Lanes>
EDLM_DEVICE void take_step(const Block& b, int max_block, bool shift, const Lanes& lanes) {
  const int length = b.slot.block_length, status = b.slot.status, pending = b.slot.pending;
  const int start = b.slot.start + length, end = b.slot.end, full = b.slot.full_length;
  const bool ended = status < 0 || text_ended(b, lanes), finished = !ended && status > 0;
  const bool keeps = shift && pending > 0;
  const std::int32_t last = keeps ? b.clean[pending - 1] : 0;
  lanes.sync(); // every lane has read what one of them changes
  if (finished) {
    for (int j = lanes.lane(); j < length; j += lanes.count()) b.clean[j] = b.tokens[j];
  } else if (keeps && lanes.lane() == 0) {
    b.clean[0] = last;
  }
  lanes.sync();
  if (finished && start < end) begin_block(b, full < end - start ? full : end - start, max_block, lanes);
  if (lanes.lane() == 0) {
    b.slot.pending = finished ? length : keeps ? 1 : 0;
    if (finished) b.slot.start = start;
    if (ended || (finished && start >= end)) b.slot.active = 0;
  }
  lanes.sync();
}

// Where the rows of a slot go among the inputs of a step, and how far each kind is padded: 0 is not at all.
struct Places {
  std::int64_t noisy_row, clean_row, head;
  std::int64_t noisy_block, clean_block;
  int padded;
};

template <class Lanes>
EDLM_DEVICE void lay_out_rows(const StepInputs& inputs, int slot, std::int64_t first, int start, int count, int padded,
                              const std::int32_t* tokens, const Lanes& lanes) {
  for (int j = lanes.lane(); j < (count > padded ? count : padded); j += lanes.count()) {
    const bool used = j < count;
    inputs.token_ids[first + j] = used ? tokens[j] : 0;
    inputs.row_slots[first + j] = used ? slot : -1;
    inputs.positions[first + j] = used ? start + j : 0;
  }
}

EDLM_DEVICE QueryBlock query_block(int slot, int start, int length, std::int64_t row) {
  const bool used = length > 0;
  return {used ? slot : -1, used ? start : 0, length, used ? start + length : 0, 0, static_cast<std::int32_t>(row)};
}

// The rows whose statistics the wanted positions need, without gaps; returns how many.
template <class Lanes>
EDLM_DEVICE int lay_out_heads(const StepInputs& inputs, const Block& b, int slot, const Places& at, int length,
                              int pending, bool shift, const Lanes& lanes) {
  int heads = 0;
  for (int begin = 0; begin < length; begin += lanes.count()) {
    const int j = begin + lanes.lane();
    const int wanted = j < length && b.wanted[j] ? 1 : 0, before = lanes.sum_before(wanted);
    if (wanted) {
      const std::int64_t head = at.head + heads + before, row = at.noisy_row + j;
      inputs.head_rows[head] = static_cast<std::int32_t>(!shift ? row : j > 0 ? row - 1 : at.clean_row + pending - 1);
      inputs.head_slots[head] = slot;
      inputs.head_positions[head] = b.slot.start + j;
    }
    heads += lanes.sum(wanted);
  }
  for (int i = heads + lanes.lane(); i < at.padded; i += lanes.count()) {
    inputs.head_rows[at.head + i] = inputs.head_positions[at.head + i] = 0;
    inputs.head_slots[at.head + i] = -1;
  }
  return heads;
}

// Rows of a slot: the clean ones that are pending, the noisy ones of its block, and how many statistics are wanted.
struct Rows {
  int clean, noisy, heads;
};

// The next step of a slot. noisy: whether the block's own rows are needed; a block of one position that the row before
// it predicts has none. An inactive slot has only padding.
template <class Lanes>
EDLM_DEVICE Rows lay_out(const StepInputs& inputs, const Block& b, int slot, const Places& at, bool active, bool noisy,
                         bool shift, const Lanes& lanes) {
  const int length = active ? b.slot.block_length : 0, pending = active ? b.slot.pending : 0;
  const int start = b.slot.start, rows = noisy ? length : 0;
  if (noisy) lay_out_rows(inputs, slot, at.noisy_row, start, rows, at.padded, b.tokens, lanes);
  lay_out_rows(inputs, slot, at.clean_row, start - pending, pending, at.padded, b.clean, lanes);
  if (lanes.lane() == 0) {
    if (rows > 0 || at.padded) inputs.query_blocks[at.noisy_block] = query_block(slot, start, rows, at.noisy_row);
    if (pending > 0 || at.padded)
      inputs.query_blocks[at.clean_block] = query_block(slot, start - pending, pending, at.clean_row);
  }
  const int heads = lay_out_heads(inputs, b, slot, at, length, pending, shift, lanes);
  if (lanes.lane() == 0) inputs.first_row[slot] = active ? static_cast<std::int32_t>(at.head) : -1;
  return {pending, rows, heads};
}

} // namespace edlm
