"""What a training forward may see, and which tokens it has to fill in (Efficient-DLM, arXiv 2512.14067)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def training_mask(length: int, block: int) -> Tensor:
    """Bool (2·length, 2·length), True where query (row) may see key (column) of [noisy | clean] (Fig. 2d).

    Noisy rows see their own noisy block and the earlier clean blocks; clean rows see the clean blocks up to
    their own.
    """
    blocks = torch.arange(length) // block
    query, key = blocks[:, None], blocks[None, :]
    same, earlier, nothing = query == key, query > key, torch.zeros(length, length, dtype=torch.bool)
    noisy = torch.cat((same, earlier), 1)
    clean = torch.cat((nothing, same | earlier), 1)
    return torch.cat((noisy, clean))


def causal_block_mask(length: int, block: int) -> Tensor:
    """Bool (length, length): each row sees its own and earlier blocks; training without clean context."""
    blocks = torch.arange(length) // block
    return blocks[:, None] >= blocks[None, :]


def position_log_weights(level: Tensor, block: int, half_life_ratio: float | None) -> Tensor:
    """log w_i(t) = β·(1 - t)·i with β = ln 2 / (λ·L'), paper Eq. 2; (*level.shape, block).

    level: noise levels t; half_life_ratio: λ, the share of a block over which the weight doubles as t → 0;
    None is uniform masking (λ → ∞).
    """
    beta = 0.0 if half_life_ratio is None else math.log(2) / (half_life_ratio * block)
    return beta * (1 - level)[..., None] * torch.arange(block, dtype=torch.float32)


def draw_masks(
    rows: int,
    length: int,
    block: int,
    half_life_ratio: float | None,
    generator: torch.Generator,
    min_level: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """(masked bool, noise level fp32), each (rows, length).

    Every block has its own level t ~ U(min_level, 1) and exactly round(t · its length) masks, possibly none,
    drawn without replacement with chances proportional to w_i(t) by Gumbel-top-k (§3.3). A short last block
    keeps the nominal block length in β.
    """
    count = -(-length // block)
    level = min_level + (1 - min_level) * torch.rand(rows, count, generator=generator)
    inside = torch.arange(count * block).view(count, block) < length
    uniform = torch.rand(rows, count, block, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    scores = position_log_weights(level, block, half_life_ratio) - torch.log(-torch.log(uniform))
    scores = scores.masked_fill(~inside, -torch.inf)
    rank = scores.argsort(-1, descending=True).argsort(-1)
    masked = rank < torch.round(level * inside.sum(-1))[..., None]
    levels = level[..., None].expand(rows, count, block)
    return masked.flatten(1)[:, :length], levels.flatten(1)[:, :length].contiguous()
