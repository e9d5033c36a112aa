"""The inputs of a forward: parts of one buffer, and rows that come behind others."""

from dataclasses import fields

import pytest
import torch

from edlm_engine import ops, policies
from edlm_engine.steps.block_state import OPEN, BlockState
from edlm_engine.steps.inputs import ForwardInputs, QueryBlock, StepBuffer, append_blocks, to_device

MASK = 99


def laid_out(canvas: list[int], *, shift=False, mask_token_id=MASK) -> ForwardInputs:
    """Slot 1 of three has a block of `canvas` at position 20, behind the token 50."""
    state = BlockState(3, 8 if len(canvas) > 1 else 1, mask_token_id)
    state.begin_request(1, policies.Threshold())
    state.begin_sequence(1, 20, [50] * shift, 40, len(canvas), ())
    state.begin_block(1, canvas)
    state.host.active[1] = 1
    buffer = StepBuffer(*state.tokens.shape, 3, shift)
    control = torch.zeros(ops.CONTROL_WORDS, dtype=torch.int32)
    flags = ops.LAY_OUT | ops.COMPACT | (ops.SHIFT if shift else 0)
    ops.advance(state.records, buffer.buffer, control, None, flags)
    return buffer.leading(*control[4:7].tolist())


def test_an_active_block_and_a_prompt_behind_it():
    inputs = append_blocks(laid_out([OPEN, 11, OPEN, OPEN, 14, 15]), [(QueryBlock(0, 0, 5, 5), range(5))])
    assert inputs.query_blocks.tolist() == [[1, 20, 6, 26, 0, 0], [0, 0, 5, 5, 0, 6]]
    assert inputs.token_ids.tolist() == [MASK, 11, MASK, MASK, 14, 15, 0, 1, 2, 3, 4]
    assert inputs.positions.tolist() == [20, 21, 22, 23, 24, 25, 0, 1, 2, 3, 4]
    assert inputs.slots.tolist() == [1] * 6 + [0] * 5
    assert inputs.head_rows.tolist() == [0, 2, 3]
    assert inputs.head_positions.tolist() == [20, 22, 23]
    assert inputs.first_row.tolist() == [-1, 0, -1]


def test_token_shift():
    """Every mask is predicted by the row before it; the first needs the clean token before the block."""
    inputs = laid_out([OPEN, 11, OPEN, 13], shift=True)
    assert inputs.query_blocks.tolist() == [[1, 19, 1, 20, 0, 0], [1, 20, 4, 24, 0, 1]]
    assert inputs.token_ids.tolist() == [50, MASK, 11, MASK, 13]
    assert inputs.positions[inputs.head_rows].tolist() == [19, 21]
    assert inputs.head_positions.tolist() == [20, 22]


def test_autoregressive_step_has_no_row_for_the_token_to_come():
    inputs = laid_out([OPEN], shift=True, mask_token_id=None)
    assert inputs.token_ids.tolist() == [50] and inputs.head_rows.tolist() == [0]
    assert inputs.head_positions.tolist() == [20]


def test_a_prompt_alone():
    nothing = laid_out([OPEN, OPEN])
    empty = ForwardInputs(*(getattr(nothing, f.name)[:0] for f in fields(nothing)[:-1]), nothing.first_row)
    inputs = append_blocks(empty, [(QueryBlock(0, 0, 3, 3), [1, 2, 3]), (QueryBlock(2, 4, 1, 5), [9])])
    assert inputs.token_ids.tolist() == [1, 2, 3, 9] and len(inputs.head_rows) == 0
    assert inputs.query_blocks.tolist() == [[0, 0, 3, 3, 0, 0], [2, 4, 1, 5, 0, 3]]
    assert all(
        getattr(inputs, f.name).dtype == torch.int32 and getattr(inputs, f.name).is_contiguous()
        for f in fields(inputs)
    )


@pytest.mark.parametrize(
    ("block_length", "shift", "rows"), [(8, False, 16), (8, True, 16), (1, True, 1), (1, False, 2)]
)
def test_a_buffer_has_room_for_its_slots(block_length, shift, rows):
    """As many rows as the op takes: it checks the size."""
    buffer = StepBuffer(5, block_length, 3, shift)
    assert buffer.rows == 3 * rows and len(buffer.inputs.query_blocks) == 6
    state, control = BlockState(5, block_length, MASK), torch.zeros(ops.CONTROL_WORDS, dtype=torch.int32)
    ops.advance(state.records, buffer.buffer, control, None, ops.LAY_OUT | (ops.SHIFT if shift else 0))
    assert buffer.inputs.slots.eq(-1).all() and buffer.inputs.first_row.eq(-1).all()


def test_elsewhere_every_part_has_its_shape():
    """On a CPU they stay what they are."""
    inputs = laid_out([OPEN, 11, OPEN])
    assert to_device(inputs, torch.device("cpu")) is inputs
    moved = to_device(inputs, torch.device("meta"))
    for f in fields(inputs):
        here, there = getattr(inputs, f.name), getattr(moved, f.name)
        assert there.shape == here.shape and there.dtype == here.dtype and there.is_meta
