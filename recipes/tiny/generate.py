"""Batched decoding in plain torch, without a cache: for attention patterns that the engine does not run, and
in training.

Every forward covers prompt and canvas up to the end of the active block; what a row may see is given by
block numbers, so one mask rule (query's block >= key's block) serves autoregressive, block-wise and fully
bidirectional models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edlm_engine.convert.model import Decoder


@dataclass(frozen=True)
class Decoding:
    """block: block length; 1 with `shift` is autoregressive decoding. threshold None: one token per forward.
    bidirectional: every row sees prompt and whole canvas. shift: the logits at i are for token i + 1."""

    block: int = 16
    threshold: float | None = None
    bidirectional: bool = False
    shift: bool = False
    max_new_tokens: int = 64


AUTOREGRESSIVE = Decoding(block=1, shift=True)


def block_numbers(lengths: Tensor, total: int, how: Decoding) -> Tensor:
    """(batch, total): the prompt is cut into blocks from its first token, the canvas from the end of the
    prompt."""
    at = torch.arange(total)
    in_prompt = at // how.block
    in_canvas = (lengths[:, None] + how.block - 1) // how.block + (at - lengths[:, None]) // how.block
    return torch.where(at < lengths[:, None], in_prompt, in_canvas)


def commit(canvas: Tensor, logits: Tensor, active: Tensor, mask_id: int, threshold: float | None) -> None:
    """Write, in place, the best active position of each row and every other one at or above the threshold."""
    logits[..., mask_id] = -torch.inf
    confidence, token = logits.softmax(-1).max(-1)
    confidence = confidence.masked_fill(~active, -1.0)
    chosen = active & (confidence >= threshold) if threshold is not None else torch.zeros_like(active)
    rows = active.any(1).nonzero().squeeze(1)
    chosen[rows, confidence[rows].argmax(1)] = True
    canvas[chosen] = token[chosen]


def finished(canvas: Tensor, lengths: Tensor, mask_id: int, eos_id: int) -> Tensor:
    """(batch,) True where the canvas has an end-of-text with no mask before it."""
    in_canvas = torch.arange(canvas.shape[1]) >= lengths[:, None]
    ends = (canvas == eos_id) & in_canvas
    masks_before = ((canvas == mask_id) & in_canvas).cumsum(1)
    return (ends & (masks_before == 0)).any(1)


@torch.no_grad()
def generate(
    model: Decoder, prompts: list[list[int]], mask_id: int, eos_id: int, how: Decoding
) -> tuple[list[list[int]], list[int]]:
    """(new tokens of each prompt, cut after end-of-text; denoising forwards each one took)."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    total = int(lengths.max()) + how.max_new_tokens
    canvas = torch.full((len(prompts), total), mask_id)
    for row, prompt in enumerate(prompts):
        canvas[row, : len(prompt)] = torch.tensor(prompt)
    blocks = block_numbers(lengths, total, how)
    at = torch.arange(total)
    end = lengths[:, None] + how.max_new_tokens
    forwards = torch.zeros(len(prompts), dtype=torch.long)
    done = torch.zeros(len(prompts), dtype=torch.bool)
    while not done.all():
        rows = (~done).nonzero().squeeze(1)
        part, length = canvas[rows], lengths[rows, None]
        masked = (part == mask_id) & (at >= length) & (at < end[rows])
        current = blocks[rows].masked_fill(~masked, torch.iinfo(torch.long).max).min(1, keepdim=True).values
        active = masked & (blocks[rows] == current)
        width = total if how.bidirectional else int((blocks[rows] == current).nonzero()[:, 1].max()) + 1
        allow = (at[:width] < end[rows])[:, None, :].expand(-1, width, -1)
        if not how.bidirectional:
            allow = allow & (blocks[rows, :width, None] >= blocks[rows, None, :width])
        logits = model(part[:, :width], None, allow | torch.eye(width, dtype=torch.bool)).float()
        if how.shift:
            logits = logits.roll(1, 1)
        commit(part[:, :width], logits, active[:, :width], mask_id, how.threshold)
        canvas[rows] = part
        forwards[rows] += 1
        left = ((part == mask_id) & (at >= length) & (at < end[rows])).any(1)
        done[rows] = finished(part, lengths[rows], mask_id, eos_id) | ~left
    return [
        cut(canvas[row, n : n + how.max_new_tokens].tolist(), eos_id) for row, n in enumerate(lengths)
    ], forwards.tolist()


def cut(tokens: list[int], eos_id: int) -> list[int]:
    return tokens[: tokens.index(eos_id) + 1] if eos_id in tokens else tokens
