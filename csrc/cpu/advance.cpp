#include <algorithm>
#include <atomic>
#include <cstring>

#include "dispatch.h"

namespace edlm::cpu {
namespace {

bool stops(const AdvanceParams& p, std::int64_t s, std::int32_t token) {
  const std::int32_t* ids = p.stop_ids + s * p.stop_ids_per_slot;
  return std::find(ids, ids + p.stop_ids_per_slot, token) != ids + p.stop_ids_per_slot;
}

// Whether a token that ends the text has nothing but tokens before it.
bool text_ended(const AdvanceParams& p, std::int64_t s) {
  for (std::int64_t at = s * p.max_block; at < s * p.max_block + p.block_length[s] && !p.masked[at]; ++at)
    if (stops(p, s, p.tokens[at])) return true;
  return false;
}

void begin_block(const AdvanceParams& p, std::int64_t s) {
  const std::int32_t length = std::min(p.full_length[s], p.end[s] - p.start[s]);
  std::int32_t* tokens = p.tokens + s * p.max_block;
  std::uint8_t* masked = p.masked + s * p.max_block;
  std::fill_n(tokens, p.max_block, std::max(0, p.mask_id));
  for (std::int64_t j = 0; j < p.max_block; ++j) masked[j] = j < length;
  p.num_masked[s] = p.block_length[s] = length;
  p.step[s] = p.status[s] = 0;
}

// What a step that took part in has left: the clean rows are written, the block may be finished, the text may be.
void take(const AdvanceParams& p, std::int64_t s) {
  std::int32_t* clean = p.clean + s * p.max_block;
  if (p.shift) clean[0] = clean[p.pending[s] - 1]; // the first position is predicted from there again
  p.pending[s] = p.shift;
  if (p.status[s] < 0 || text_ended(p, s)) {
    p.active[s] = 0;
  } else if (p.status[s] > 0) {
    p.pending[s] = p.block_length[s];
    std::copy_n(p.tokens + s * p.max_block, p.pending[s], clean);
    p.start[s] += p.pending[s];
    if (p.start[s] < p.end[s])
      begin_block(p, s);
    else
      p.active[s] = 0;
  }
}

void lay_out_rows(const AdvanceParams& p, std::int64_t s, std::int64_t first, std::int32_t start, std::int32_t count,
                  const std::int32_t* tokens) {
  for (std::int64_t j = 0; j < p.max_block; ++j) {
    const bool used = j < count;
    p.token_ids[first + j] = used ? tokens[j] : 0;
    p.row_slots[first + j] = used ? static_cast<std::int32_t>(s) : -1;
    p.positions[first + j] = used ? start + static_cast<std::int32_t>(j) : 0;
  }
}

QueryBlock query_block(std::int64_t s, std::int32_t start, std::int32_t length, std::int64_t row) {
  const auto slot = static_cast<std::int32_t>(length > 0 ? s : -1);
  return {slot, length > 0 ? start : 0, length, length > 0 ? start + length : 0, 0, static_cast<std::int32_t>(row)};
}

void lay_out(const AdvanceParams& p, std::int64_t s) {
  const bool active = p.active[s] != 0, noisy = p.mask_id >= 0;
  const std::int64_t base = s * p.max_block, noisy_row = noisy ? base : 0;
  const std::int64_t clean_row = (noisy ? p.batch * p.max_block : 0) + base;
  const std::int32_t length = active ? p.block_length[s] : 0, pending = active ? p.pending[s] : 0;
  const std::int32_t start = p.start[s];
  if (noisy) lay_out_rows(p, s, noisy_row, start, length, p.tokens + base);
  lay_out_rows(p, s, clean_row, start - pending, pending, p.clean + base);
  p.query_blocks[s] = query_block(s, start, noisy ? length : 0, noisy_row);
  p.query_blocks[p.batch + s] = query_block(s, start - pending, pending, clean_row);
  std::int64_t head = base;
  for (std::int32_t j = 0; j < length; ++j) {
    if (!p.masked[base + j]) continue;
    const std::int64_t own = noisy_row + j;
    p.head_rows[head] = static_cast<std::int32_t>(!p.shift ? own : j > 0 ? own - 1 : clean_row + pending - 1);
    p.head_slots[head] = static_cast<std::int32_t>(s);
    p.head_positions[head++] = start + j;
  }
  for (; head < base + p.max_block; ++head) {
    p.head_rows[head] = p.head_positions[head] = 0;
    p.head_slots[head] = -1;
  }
}

} // namespace

void advance(const AdvanceParams& p) {
  if (!p.lay_out_only) {
    std::memcpy(p.ring + p.control->snapshots % p.ring_size * p.snapshot_bytes, p.snapshot, p.snapshot_bytes);
    std::atomic_thread_fence(std::memory_order_release); // whoever sees the count sees the bytes
    p.host[kHostSnapshots] = ++p.control->snapshots;
  }
  bool any = false, commit = false;
  for (std::int64_t s = 0; s < p.slots; ++s) {
    if (p.active[s] && !p.lay_out_only) take(p, s);
    if (p.host[kHostStop + s] || s >= p.batch) p.active[s] = 0;
    if (s < p.batch) lay_out(p, s);
    p.first_row[s] = p.active[s] ? static_cast<std::int32_t>(s * p.max_block) : -1;
    any |= p.active[s] != 0;
    commit |= p.active[s] && p.pending[s] > 0;
  }
  p.control->go_on = any && !p.host[kHostPause];
  p.control->commit = commit;
}

} // namespace edlm::cpu
