"""Policies without a native rule: their choice in plain torch, which the kernel then commits."""

import torch
from torch import Tensor

from .. import ops
from .block_state import BlockState
from .policies import Policy, Statistics


def statistics_of(state: BlockState, slots: list[int], stats: Tensor, first_row: Tensor) -> Statistics:
    """What a policy sees of those slots. stats: float32 [n, STAT_COLUMNS] and first_row: int32 [all slots] as
    in ops.unmask()."""
    wanted = state.wanted[slots].bool()
    row = first_row[slots].long()[:, None] + wanted.cumsum(1) - 1
    table = stats.new_full((*wanted.shape, stats.shape[1]), torch.nan)
    table[wanted] = stats[row[wanted]]
    columns = {name: table[..., column] for name, column in ops.STAT_COLUMNS.items()}
    given = state.given[slots].bool() & _inside(state, slots)
    to_fill = state.block_length[slots].long() - given.sum(1)
    return Statistics(**columns, step=state.step[slots].long(), to_fill=to_fill)


def _inside(state: BlockState, slots: list[int]) -> Tensor:
    positions = torch.arange(state.tokens.shape[1], device=state.records.device)
    return positions < state.block_length[slots][:, None]


def select(policy: Policy, state: BlockState, slots: list[int], stats: Tensor, first_row: Tensor):
    """Mark in the block state what the policy selects in those slots, for Rule::selected."""
    open = (state.open[slots] != 0) & (state.wanted[slots] != 0)
    selected = policy.select(open, statistics_of(state, slots, stats, first_row)) & open
    state.selected[slots] = selected.int()
