"""The noise of a training step, and the loss of its masked tokens (arXiv 2512.14067, Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edlm_engine.convert.config import ConversionConfig
from edlm_engine.convert.data import Rows
from edlm_engine.convert.masking import (
    causal_block_mask,
    draw_masks,
    noisy_slots,
    number_blocks,
    training_mask,
)


@dataclass(frozen=True)
class Batch:
    """One step's rows and noise. (rows, length): ids, loss weights, block numbers. slots (rows, width): which
    tokens are noised, -1 for none. (rows, views, width): masked, noise level."""

    ids: Tensor
    weights: Tensor
    blocks: Tensor
    slots: Tensor
    masked: Tensor
    level: Tensor


def noisy_batch(rows: Rows, config: ConversionConfig, generator: torch.Generator) -> Batch:
    """Number the blocks of packed rows and draw their masks."""
    ids, weights = torch.from_numpy(rows.ids).long(), torch.from_numpy(rows.weights)
    starts = torch.from_numpy(rows.starts).clone()
    if not config.align_blocks:
        starts[:] = False
    blocks = number_blocks(starts, config.block_size)
    whole_row = torch.arange(config.length).expand_as(blocks)
    slots = noisy_slots(blocks, weights == 1, config.noisy_length) if config.noisy_length else whole_row
    noise_block = config.length if config.sequence_noise else config.block_size
    noise_blocks = torch.zeros_like(blocks) if config.sequence_noise else blocks
    masked, level = draw_masks(
        noise_blocks.repeat_interleave(config.views, 0),
        noise_block,
        config.half_life_ratio,
        generator,
        config.min_level,
        config.views,
    )
    pick = slots.clamp_min(0)[:, None].expand(-1, config.views, -1)
    masked, level = (x.unflatten(0, (-1, config.views)).gather(2, pick) for x in (masked, level))
    return Batch(ids, weights, blocks, slots, masked & (slots >= 0)[:, None], level)


def predictors(config: ConversionConfig, batch: Batch) -> Tensor:
    """(rows, views · width): the output row that predicts each noised token; -1 where none does."""
    rows, views, width = batch.masked.shape
    at = torch.arange(views * width, device=batch.ids.device).expand(rows, -1)
    if not config.token_shift:
        return at
    shifted = at - 1
    if config.attention == "block_diff":
        # The token before a block is clean by the time the block is decoded, so its clean row predicts.
        begins = batch.blocks != batch.blocks.roll(1, 1)
        shifted = torch.where(begins, shifted + width, shifted)
    shifted[:, 0] = -1
    return shifted


def diffusion_loss(
    hidden: Callable[[Tensor, Tensor, Tensor | tuple[Tensor, Tensor]], Tensor],
    head: Tensor,
    batch: Batch,
    mask_token_id: int,
    config: ConversionConfig,
) -> Tensor:
    """-Σ over masked i of weight_i / t_i · log p(x_i), over Σ of all noised weights: Eq. 1 per noised token.

    hidden: (ids, positions, allow) -> final states; see `Decoder.hidden`.
    """
    slots = batch.slots.clamp_min(0)
    targets = batch.ids.gather(1, slots)[:, None].expand_as(batch.masked)
    weights = batch.weights.gather(1, slots) * (batch.slots >= 0)
    weights = weights[:, None].expand_as(batch.masked)
    inputs = targets.masked_fill(batch.masked, mask_token_id).flatten(1)
    positions = slots.repeat(1, config.views)
    if config.attention == "block_diff":
        clean = torch.arange(config.length, device=slots.device).expand_as(batch.ids)
        inputs, positions = torch.cat((inputs, batch.ids), 1), torch.cat((positions, clean), 1)
        allow = training_mask(batch.blocks, batch.slots)
    else:
        all_one = config.attention == "bidirectional"
        allow = causal_block_mask(torch.zeros_like(batch.blocks) if all_one else batch.blocks)
    states = hidden(inputs, positions, allow)
    predictor = predictors(config, batch)
    row, at = (batch.masked.flatten(1) & (predictor >= 0)).nonzero(as_tuple=True)
    logits = F.linear(states[row, predictor[row, at]], head)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets.flatten(1)[row, at], reduction="none")
    return (losses * (weights / batch.level).flatten(1)[row, at]).sum() / weights.sum()
