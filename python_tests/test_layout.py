"""Query blocks of prompts and active blocks, and the rows of a forward."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm_engine import SamplingParams
from edlm_engine.steps.block_state import BlockState
from edlm_engine.steps.inputs import QueryBlock
from edlm_engine.steps.layout import ForwardBuilder, add_active_block, prompt_blocks

MASK = 99


def visible(block: QueryBlock) -> dict[int, int]:
    """Position of each row -> number of keys it sees."""
    last = block.start + block.length - 1
    return {
        position: block.kv_len - (last - position if block.causal else 0)
        for position in range(block.start, last + 1)
    }


def expected_keys(position: int, length: int, prefill: str, block_length: int) -> int:
    return {
        "causal": position + 1,
        "bidirectional": length,
        "block_causal": min((position // block_length + 1) * block_length, length),
    }[prefill]


@given(
    st.integers(1, 200), st.sampled_from(["causal", "block_causal", "bidirectional"]), st.integers(1, 40),
    st.integers(0, 300), st.data(),
)  # fmt: skip
def test_prompt_blocks(length, prefill, block_length, room, data):
    """Whatever the room of each forward, every row is laid out once, in order, and sees what it must."""
    room = max(room, block_length if prefill != "bidirectional" else length)
    cached, seen = 0, {}
    while cached < length:
        now = data.draw(st.integers(0, room)) if len(seen) % 3 else room  # other prompts took the rest
        blocks = prompt_blocks(7, cached, length, prefill, block_length, now)
        assert sum(block.length for block in blocks) <= now
        for block in blocks:
            assert block.slot == 7 and block.start == cached and block.length > 0
            # keys must have been written: by an earlier forward or by this one
            assert block.kv_len <= blocks[-1].start + blocks[-1].length
            seen |= visible(block)
            cached = block.start + block.length
        if now == room:
            assert blocks, "a forward with all the room must make progress"
    assert cached == length
    assert seen == {i: expected_keys(i, length, prefill, block_length) for i in range(length)}


@given(st.integers(1, 300), st.integers(1, 40))
def test_block_causal_fills_the_room(length, block_length):
    blocks = prompt_blocks(0, 0, length, "block_causal", block_length, 128)
    rows = sum(block.length for block in blocks)
    assert rows == length if length <= 128 else rows > 128 - block_length


@pytest.mark.parametrize("prefill", ("causal", "block_causal", "bidirectional"))
@pytest.mark.parametrize("room", (0, -30))
def test_no_room(prefill, room):
    assert prompt_blocks(0, 0, 5, prefill, 4, room) == []


def state_with(masked: list[int], length: int, mask_token_id=MASK) -> BlockState:
    """Slot 1 has a block of `length` with tokens 10, 11, … but masks at `masked`."""
    state = BlockState(3, 8, mask_token_id)
    state.begin_request(1, SamplingParams(), 0)
    state.begin_block(1, length)
    for position in set(range(length)) - set(masked):
        state.tokens[1, position] = 10 + position
        state.masked[1, position] = 0
    return state


def test_active_block():
    builder = ForwardBuilder(3)
    builder.add(QueryBlock(0, 0, 5, 5), range(5))  # another sequence before it
    add_active_block(builder, state_with([0, 2, 3], 6), 1, 20, 50, shift=False, fresh=False)
    inputs = builder.build()
    assert inputs.query_blocks.tolist() == [[0, 0, 5, 5, 0, 0], [1, 20, 6, 26, 0, 5]]
    assert inputs.token_ids.tolist() == [0, 1, 2, 3, 4, MASK, 11, MASK, MASK, 14, 15]
    assert inputs.positions.tolist() == [0, 1, 2, 3, 4, 20, 21, 22, 23, 24, 25]
    assert inputs.slots.tolist() == [0] * 5 + [1] * 6
    assert inputs.head_rows.tolist() == [5, 7, 8]
    assert inputs.head_positions.tolist() == [20, 22, 23]
    assert inputs.first_row.tolist() == [-1, 0, -1]


def test_active_block_with_token_shift():
    """Every mask is predicted by the row before it; the first needs the clean token before the block."""
    builder = ForwardBuilder(3)
    add_active_block(builder, state_with([0, 2], 4), 1, 20, 50, shift=True, fresh=False)
    inputs = builder.build()
    assert inputs.query_blocks.tolist() == [[1, 19, 1, 20, 0, 0], [1, 20, 4, 24, 0, 1]]
    assert inputs.token_ids.tolist() == [50, MASK, 11, MASK, 13]
    assert inputs.positions[inputs.head_rows].tolist() == [19, 21]
    assert inputs.head_positions.tolist() == [20, 22]


def test_fresh_token_shift_uses_the_row_that_is_there():
    builder = ForwardBuilder(3)
    builder.add(QueryBlock(1, 16, 4, 20), [47, 48, 49, 50])
    add_active_block(builder, state_with([0, 1, 2, 3], 4), 1, 20, 50, shift=True, fresh=True)
    inputs = builder.build()
    assert len(inputs.token_ids) == 8
    assert inputs.positions[inputs.head_rows].tolist() == [19, 20, 21, 22]


def test_autoregressive_step_has_no_row_for_the_token_to_come():
    builder = ForwardBuilder(3)
    builder.add(QueryBlock(1, 19, 1, 20), [50])
    add_active_block(builder, state_with([0], 1, mask_token_id=None), 1, 20, 50, shift=True, fresh=True)
    inputs = builder.build()
    assert inputs.token_ids.tolist() == [50] and inputs.head_rows.tolist() == [0]
    assert inputs.head_positions.tolist() == [20]


def test_forward_without_statistics():
    builder = ForwardBuilder(2)
    builder.add(QueryBlock(0, 0, 3, 3), [1, 2, 3])
    inputs = builder.build()
    assert len(inputs.head_rows) == 0 and inputs.first_row.tolist() == [-1, -1]
    assert all(
        getattr(inputs, name).numpy().dtype == np.int32 and getattr(inputs, name).is_contiguous()
        for name in inputs.__slots__
    )
