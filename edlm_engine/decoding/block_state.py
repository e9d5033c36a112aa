"""The active blocks of all sequences, as tensors that the kernels read and change in place."""

import math
from types import SimpleNamespace

import torch

from ..params import SamplingParams

_PER_POSITION = {
    "tokens": torch.int32,  # the mask token where masked
    "masked": torch.uint8,
    "confidence": torch.float32,  # valid where committed
    "commit_step": torch.int32,  # valid where committed
}
_PER_SLOT = {
    "num_masked": torch.int32,
    "block_length": torch.int32,
    "step": torch.int32,  # denoising steps done in this block
    "status": torch.int32,  # 0: masks left, 1: block finished, -1: NaN or infinite logits
    "threshold": torch.float32,  # NaN: fixed schedule
    "steps_per_block": torch.int32,  # 0: unset
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "seed": torch.int64,
}


class BlockState:
    """One row per cache slot: per-position tensors are [slots, block_length], per-slot ones [slots].

    Every tensor is an attribute under its name above; `host` has the same names as numpy arrays over the
    same memory, for code that looks at single elements.
    """

    def __init__(self, slots: int, block_length: int, mask_token_id: int | None):
        self.mask_token_id = mask_token_id
        self.host = SimpleNamespace()
        shapes = dict.fromkeys(_PER_POSITION, (slots, block_length)) | dict.fromkeys(_PER_SLOT, (slots,))
        for name, dtype in (_PER_POSITION | _PER_SLOT).items():
            tensor = torch.zeros(shapes[name], dtype=dtype)
            setattr(self, name, tensor)
            setattr(self.host, name, tensor.numpy())

    def begin_request(self, slot: int, params: SamplingParams, seed: int):
        host = self.host
        host.threshold[slot] = math.nan if params.threshold is None else params.threshold
        default_steps = host.tokens.shape[1] if params.threshold is None else 0
        host.steps_per_block[slot] = min(params.steps_per_block or default_steps, 2**31 - 1)
        host.temperature[slot] = params.temperature
        host.top_k[slot], host.top_p[slot] = params.top_k, params.top_p
        host.seed[slot] = seed

    def begin_block(self, slot: int, length: int):
        """A block of `length` masks."""
        host = self.host
        host.tokens[slot] = 0 if self.mask_token_id is None else self.mask_token_id
        host.masked[slot] = 0
        host.masked[slot, :length] = 1
        host.num_masked[slot] = host.block_length[slot] = length
        host.step[slot] = host.status[slot] = 0
