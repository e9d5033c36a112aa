"""The step that a device repeats: which rows it computes, and that it lays out the next."""

import pytest
import torch

from edlm_engine import policies
from edlm_engine.config import DecodingConfig
from edlm_engine.device_led.host_link import HostLink
from edlm_engine.device_led.static_step import StaticStep
from edlm_engine.steps.block_state import OPEN, BlockState

MASK, SLOTS, WIDTH = 7, 3, 4


class Runner:
    """Commits nothing; keeps the inputs of every step."""

    def __init__(self, state: BlockState):
        self.state, self.inputs = state, []

    def compute(self, inputs):
        self.inputs.append(inputs)


def step_of(batch: int, shift=False) -> tuple[StaticStep, Runner, HostLink]:
    """Slots 0 and 2 are in the middle of a block at position 8."""
    state = BlockState(SLOTS, WIDTH, MASK)
    for slot in (0, 2):
        state.begin_request(slot, policies.Threshold())
        state.begin_sequence(slot, 8, [60 + slot] * shift, 64, WIDTH, ())
        state.begin_block(slot, [OPEN, 3, OPEN, OPEN])
        state.host.active[slot] = 1
    runner, link = Runner(state), HostLink(state, 4)
    decoding = DecodingConfig(MASK, (), WIDTH, "block_causal", shift)
    return StaticStep(runner, decoding, link, batch), runner, link


def test_lay_out_prepares_the_first_step_and_takes_none():
    step, runner, link = step_of(SLOTS)
    before = runner.state.records.clone()
    step.lay_out()
    assert torch.equal(before, runner.state.records) and link.next() is None and not runner.inputs
    assert link.control[:2].tolist() == [1, 0]
    step.run(False)
    inputs = runner.inputs[0]
    assert inputs.token_ids.tolist() == [MASK, 3, MASK, MASK] + [0] * 4 + [MASK, 3, MASK, MASK]
    assert inputs.slots.tolist() == [0] * 4 + [-1] * 4 + [2] * 4
    assert inputs.query_blocks[:, :4].tolist() == [[0, 8, 4, 12], [-1, 0, 0, 0], [2, 8, 4, 12]]
    assert inputs.first_row.tolist() == [0, -1, 8] and len(inputs.head_rows) == SLOTS * WIDTH


def test_a_step_leaves_a_snapshot_of_itself_and_lays_out_the_next():
    step, runner, link = step_of(SLOTS)
    step.lay_out()
    state = runner.state.host
    for commit in (False, True):
        state.tokens[0], state.open[0], state.wanted[0], state.status[0] = [20, 3, 21, 22], 0, 0, 1
        left = runner.state.records.flatten().clone()
        step.run(commit)
        assert torch.equal(link.next(), left) and link.next() is None
        assert link.control[:2].tolist() == [1, 1] and state.open[0].all()
    # the finished block goes on beside the next one's masks
    whole = runner.inputs[1]
    assert whole.query_blocks[[0, 3], :4].tolist() == [[0, 16, 4, 20], [0, 12, 4, 16]]


@pytest.mark.parametrize("shift", (False, True))
@pytest.mark.parametrize("batch", (1, 3))
def test_rows_with_and_without_the_clean_ones(batch, shift):
    """With token shift the first position of a block is predicted by a clean row, in every step."""
    step, runner, _ = step_of(batch, shift)
    step.lay_out()
    step.run(False)
    step.run(True)
    rows, blocks = zip(*((len(i.token_ids), len(i.query_blocks)) for i in runner.inputs), strict=True)
    all_rows, noisy = 2 * batch * WIDTH, batch * WIDTH
    assert rows == (all_rows if shift else noisy, all_rows)
    assert blocks == (2 * batch if shift else batch, 2 * batch)
    for inputs in runner.inputs:
        assert len(inputs.slots) == len(inputs.positions) == len(inputs.token_ids)
        assert len(inputs.head_rows) == noisy and len(inputs.first_row) == SLOTS
