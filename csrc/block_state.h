// The state of the active blocks: a record per cache slot, which a step reads and changes in place. The two tables
// below are the only lists of its fields. Kernels see the fields by name, Python makes its tensors from tables_json(),
// and a new field is one line here.
#pragma once

#include <cstdint>

#include "portable.h"

namespace edlm {

constexpr int kStopIds = 8;        // of a request; the host alone finds what exceeds them, a little later
constexpr int kRuleParameters = 4; // of a commit rule

// FIELD(type, name, count): values of a slot. All types have four bytes.
#define EDLM_SLOT_FIELDS(FIELD)                                                                                     \
  FIELD(std::int32_t, active, 1)       /* 1: takes part in steps */                                                 \
  FIELD(std::int32_t, status, 1)       /* 0: positions are open, 1: the block is finished, -1: NaN or infinite */   \
  FIELD(std::int32_t, step, 1)         /* denoising steps done in this block */                                     \
  FIELD(std::int32_t, block_length, 1)                                                                              \
  FIELD(std::int32_t, start, 1)        /* absolute position of the block */                                         \
  FIELD(std::int32_t, pending, 1)      /* positions before it whose keys and values are still to be written */      \
  FIELD(std::int32_t, end, 1)          /* position behind the last block */                                         \
  FIELD(std::int32_t, full_length, 1)  /* of every block but the last */                                            \
  FIELD(std::int32_t, mask_id, 1)      /* token of an open position */                                              \
  FIELD(std::int32_t, keep_wanted, 1)  /* 1: a committed position stays wanted, 0: it does not */                   \
  FIELD(std::int32_t, stop_ids, kStopIds)            /* -1: none */                                                 \
  FIELD(std::int32_t, rule, 1)                       /* of step/commit_rule.h */                                    \
  FIELD(float, rule_parameters, kRuleParameters)                                                                    \
  FIELD(float, temperature, 1)                       /* 0: greedy */                                                \
  FIELD(std::int32_t, top_k, 1)                      /* 0: off */                                                   \
  FIELD(float, top_p, 1)                             /* 1: off */                                                   \
  FIELD(std::int32_t, seed, 2)                       /* low word, high word */

// FIELD(type, name): a value for every position of the block.
#define EDLM_POSITION_FIELDS(FIELD)                                                                                 \
  FIELD(std::int32_t, tokens)      /* the mask where open */                                                        \
  FIELD(std::int32_t, open)        /* 1: not committed */                                                           \
  FIELD(std::int32_t, wanted)      /* 1: the next step computes its statistics */                                   \
  FIELD(std::int32_t, given)       /* 1: was there before the block began; it cannot end the text */                \
  FIELD(std::int32_t, selected)    /* 1: Rule::selected commits it */                                               \
  FIELD(float, confidence)         /* valid where committed, and so the next two */                                 \
  FIELD(std::int32_t, commit_step)                                                                                  \
  FIELD(float, entropy)                                                                                             \
  FIELD(std::int32_t, clean)       /* tokens of the `pending` positions before the block */

template <class T, int count>
struct FieldOf {
  using Type = T[count];
};
template <class T>
struct FieldOf<T, 1> {
  using Type = T;
};

struct SlotFields {
#define EDLM_DECLARE(type, name, count) FieldOf<type, count>::Type name;
  EDLM_SLOT_FIELDS(EDLM_DECLARE)
#undef EDLM_DECLARE
};
static_assert(alignof(SlotFields) == 4 && sizeof(float) == 4);

#define EDLM_COUNT(type, name) +1
constexpr std::int64_t kSlotWords = sizeof(SlotFields) / 4, kPositionWords = 0 EDLM_POSITION_FIELDS(EDLM_COUNT);
#undef EDLM_COUNT

// Words of a record: the slot's fields, then each position field as max_block values; a multiple of 16 bytes.
constexpr std::int64_t record_words(std::int64_t max_block) {
  return (kSlotWords + kPositionWords * max_block + 3) / 4 * 4;
}

// The longest block that records of so many words hold; 0 if no records have that length.
constexpr std::int64_t max_block_of(std::int64_t words) {
  const std::int64_t max_block = words > kSlotWords ? (words - kSlotWords) / kPositionWords : 0;
  return max_block > 0 && record_words(max_block) == words ? max_block : 0;
}
static_assert(kPositionWords > 3, "rounding up must not reach the next block length");

struct BlockState {
  std::int32_t* records; // [slots, words]
  std::int64_t slots, max_block, words;
};

// One slot's record.
struct Block {
  SlotFields& slot;
#define EDLM_DECLARE(type, name) type* name; // [max_block]
  EDLM_POSITION_FIELDS(EDLM_DECLARE)
#undef EDLM_DECLARE
};

EDLM_HOST_DEVICE inline SlotFields& slot_fields(const BlockState& state, std::int64_t slot) {
  return *reinterpret_cast<SlotFields*>(state.records + slot * state.words);
}

EDLM_HOST_DEVICE inline Block block_of(const BlockState& state, std::int64_t slot) {
  std::int32_t* record = state.records + slot * state.words;
  std::int64_t at = kSlotWords - state.max_block;
#define EDLM_FIND(type, name) reinterpret_cast<type*>(record + (at += state.max_block)),
  return {slot_fields(state, slot), EDLM_POSITION_FIELDS(EDLM_FIND)};
#undef EDLM_FIND
}

} // namespace edlm
