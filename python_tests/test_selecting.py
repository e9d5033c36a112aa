"""Policies in plain torch: what they see of the block state, and what becomes of their choice."""

import torch

from edlm_engine import ops, policies
from edlm_engine.steps.block_state import OPEN, BlockState
from edlm_engine.steps.selecting import select, statistics_of


def state_and_stats() -> tuple[BlockState, torch.Tensor, torch.Tensor]:
    """Slot 0 has a block of 3 in records of 4, slot 2 one of 4 with a given position; slot 1 rests."""
    state = BlockState(3, 4, 7)
    for slot, canvas, step in ((0, [OPEN] * 3, 5), (2, [OPEN, 3, OPEN, OPEN], 2)):
        state.begin_request(slot, policies.Threshold())
        state.begin_block(slot, canvas)
        state.host.step[slot] = step
    state.host.open[2, 3] = 0  # committed, though its statistics are still wanted
    state.host.given[0, 3] = 1  # behind the block's end, from an earlier one
    stats = torch.arange(8 * len(ops.STAT_COLUMNS)).float().view(8, -1)
    return state, stats, torch.tensor([4, -1, 1], dtype=torch.int32)


def test_statistics():
    state, stats, first_row = state_and_stats()
    seen = statistics_of(state, [0, 2], stats, first_row)
    nan = torch.nan
    for name, column in ops.STAT_COLUMNS.items():
        value = stats[:, column].tolist()
        want = torch.tensor([[*value[4:7], nan], [value[1], nan, value[2], value[3]]])
        assert torch.equal(getattr(seen, name).nan_to_num(-1), want.nan_to_num(-1)), name
    assert seen.step.tolist() == [5, 2] and seen.to_fill.tolist() == [3, 3]
    assert seen.step.dtype == seen.to_fill.dtype == torch.int64


class All:
    """Selects every position there is, and notes what it was shown."""

    def select(self, open, stats):
        self.open = open.clone()
        return torch.ones_like(open)


def test_only_what_is_open_and_wanted_is_selected():
    state, stats, first_row = state_and_stats()
    state.host.wanted[0, 1] = 0
    state.records[1] = 9
    policy = All()
    select(policy, state, [0, 2], stats, first_row)
    assert policy.open.dtype == torch.bool
    assert policy.open.tolist() == [[True, False, True, False], [True, False, True, False]]
    assert state.host.selected[[0, 2]].tolist() == [[1, 0, 1, 0], [1, 0, 1, 0]]
    assert state.records[1].eq(9).all()
