"""Commit by confidence: threshold or fixed schedule, as in Efficient-DLM (arXiv 2512.14067, App. A)."""

import torch

from .. import ops
from .block_state import BlockState


def commit_confident(state: BlockState, ids: torch.Tensor, stats: torch.Tensor, first_row: torch.Tensor):
    """Commit, in every slot that denoises, the positions that its parameters ask for; at least the best one.

    ids int32 [m, 2], stats f32 [m, 5]: row statistics of the masked positions, slot after slot, positions
    ascending; first_row int32 [slots]: where a slot's rows begin, -1: the slot is not denoising.
    """
    ops.unmask(
        ids, stats, first_row, state.threshold, state.steps_per_block, state.block_length,
        state.tokens, state.confidence, state.commit_step, state.masked, state.num_masked, state.step,
        state.status,
    )  # fmt: skip
