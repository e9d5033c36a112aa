"""The active blocks of all sequences, as tensors that the kernels read and change in place."""

import math

import torch

from ..params import SamplingParams


class BlockState:
    """One row per cache slot.

    tokens: int32 [slots, block], the mask token where masked; masked: uint8 [slots, block].
    confidence: f32 [slots, block]; commit_step: int32 [slots, block]; both valid where committed.
    num_masked, block_length, step (denoising steps done in this block), status: int32 [slots];
        status 0: masks left, 1: block finished, -1: NaN or infinite logits.
    threshold (NaN: fixed schedule), temperature, top_p: f32 [slots]; steps_per_block (0: unset), top_k:
        int32 [slots]; seed: int64 [slots].
    """

    def __init__(self, slots: int, block_length: int, mask_token_id: int | None, device="cpu"):
        def zeros(dtype, *shape):
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.mask_token_id = mask_token_id
        self.tokens = zeros(torch.int32, block_length)
        self.masked = zeros(torch.uint8, block_length)
        self.confidence = zeros(torch.float32, block_length)
        self.commit_step = zeros(torch.int32, block_length)
        self.num_masked, self.block_length, self.step, self.status = (zeros(torch.int32) for _ in range(4))
        self.threshold, self.temperature, self.top_p = (zeros(torch.float32) for _ in range(3))
        self.steps_per_block, self.top_k = zeros(torch.int32), zeros(torch.int32)
        self.seed = zeros(torch.int64)

    def begin_request(self, slot: int, params: SamplingParams, seed: int):
        self.threshold[slot] = math.nan if params.threshold is None else params.threshold
        default_steps = self.tokens.shape[1] if params.threshold is None else 0
        self.steps_per_block[slot] = min(params.steps_per_block or default_steps, 2**31 - 1)
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.seed[slot] = seed

    def begin_block(self, slot: int, length: int):
        """A block of `length` masks."""
        self.tokens[slot] = 0 if self.mask_token_id is None else self.mask_token_id
        self.masked[slot] = 0
        self.masked[slot, :length] = 1
        self.num_masked[slot] = length
        self.block_length[slot] = length
        self.step[slot] = 0
        self.status[slot] = 0
