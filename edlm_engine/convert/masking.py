"""What a training forward may see, and which tokens it has to fill in (Efficient-DLM, arXiv 2512.14067)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def number_blocks(starts: Tensor, block: int) -> Tensor:
    """Block number of every token, int64 (rows, length): a block begins with the row, at each True of
    `starts` (rows, length), and after every `block` tokens from there."""
    at = torch.arange(starts.shape[1], device=starts.device)
    since = at - torch.where(starts, at, 0).cummax(1).values
    return (since % block == 0).cumsum(1) - 1


def training_mask(blocks: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """What noisy and clean rows may see (Fig. 2d): two bool masks, True where query (row) may see key
    (column).

    blocks: block number of every token, (rows, length). slots: which tokens the noisy rows stand for, (rows,
    width), -1 for none. Noisy rows see their own noisy block and the earlier clean blocks: (rows, width,
    width + length), noisy keys first. Clean rows see the clean blocks up to their own: (rows, length,
    length).
    """
    noisy = blocks.gather(1, slots.clamp_min(0)).masked_fill(slots < 0, -1)
    own_block = noisy[:, :, None] == noisy[:, None, :]
    return torch.cat((own_block, noisy[:, :, None] > blocks[:, None, :]), -1), causal_block_mask(blocks)


def noisy_slots(blocks: Tensor, learned: Tensor, width: int) -> Tensor:
    """(rows, width) positions of the tokens to noise, -1 for none: the blocks with a token of `learned`
    (rows, length), whole, in order, as far as `width` reaches."""
    chosen = torch.zeros_like(blocks).scatter_add_(1, blocks, learned.long()).gather(1, blocks) > 0
    end = torch.zeros_like(blocks).scatter_reduce_(1, blocks, chosen.cumsum(1), "amax").gather(1, blocks)
    chosen &= end <= width
    order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return order.masked_fill(~chosen.gather(1, order), -1)


def causal_block_mask(blocks: Tensor) -> Tensor:
    """Bool (…, length, length): rows see their own and earlier blocks; training without clean context."""
    return blocks[..., :, None] >= blocks[..., None, :]


def position_log_weights(
    level: Tensor, position: Tensor, block: int, half_life_ratio: float | None
) -> Tensor:
    """log w_i(t) = β·(1 - t)·i with β = ln 2 / (λ·L'), paper Eq. 2, of noise levels t and positions i in a
    block.

    half_life_ratio: λ, the share of a block of L' tokens over which the weight doubles as t → 0; None is
    uniform masking (λ → ∞).
    """
    beta = 0.0 if half_life_ratio is None else math.log(2) / (half_life_ratio * block)
    return beta * (1 - level) * position


def draw_masks(
    blocks: Tensor,
    block: int,
    half_life_ratio: float | None,
    generator: torch.Generator,
    min_level: float = 1e-3,
    views: int = 1,
) -> tuple[Tensor, Tensor]:
    """(masked bool, noise level fp32), each (rows, length), for block numbers (rows, length).

    Every block has its own level t ~ U(min_level, 1) and exactly round(t · its length) masks, possibly none,
    drawn without replacement with chances proportional to w_i(t) by Gumbel-top-k (§3.3). A shorter block
    keeps the nominal block length in β. Each `views` rows, one after the other, are views of the same tokens:
    their levels of a block lie evenly spaced in the range, so that together they vary less.
    """
    rows, length = blocks.shape
    spaced = torch.arange(rows, dtype=torch.float32)[:, None] % views / views
    level = torch.rand(rows // views, length, generator=generator, dtype=torch.float32)
    level = level.repeat_interleave(views, 0)
    level = min_level + (1 - min_level) * ((level + spaced) % 1).gather(1, blocks)
    size = torch.zeros_like(blocks).scatter_add_(1, blocks, torch.ones_like(blocks))
    first = (size.cumsum(1) - size).gather(1, blocks)
    size = size.gather(1, blocks)
    at = torch.arange(length).expand(rows, length)
    uniform = torch.rand(rows, length, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    scores = position_log_weights(level, at - first, block, half_life_ratio) - torch.log(-torch.log(uniform))
    by_score = scores.argsort(1, descending=True)
    order = by_score.gather(
        1, blocks.gather(1, by_score).argsort(dim=1, stable=True)
    )  # by block, then by score
    rank = torch.empty_like(order).scatter_(1, order, at) - first
    return rank < torch.round(level * size), level
