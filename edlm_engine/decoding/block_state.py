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
_ALIGNMENT = 64


class BlockState:
    """One row per cache slot: per-position tensors are [slots, block_length], per-slot ones [slots].

    Every tensor is an attribute under its name above, and `host` has the same names as numpy arrays, for
    code that looks at single elements. All of them lie in one buffer: on a GPU, upload() and download() move
    it whole; on the CPU tensors and arrays are the same memory.
    """

    def __init__(self, slots: int, block_length: int, mask_token_id: int | None, device="cpu"):
        self.mask_token_id = mask_token_id
        self.host = SimpleNamespace()
        shapes = dict.fromkeys(_PER_POSITION, (slots, block_length)) | dict.fromkeys(_PER_SLOT, (slots,))
        ends, size = {}, 0
        for name, dtype in (_PER_POSITION | _PER_SLOT).items():
            begin = -(-size // _ALIGNMENT) * _ALIGNMENT
            ends[name] = (begin, size := begin + math.prod(shapes[name]) * dtype.itemsize)
        self._device = torch.zeros(size, dtype=torch.uint8, device=device)
        self._host = self._device
        if self._device.device.type != "cpu":
            self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
        for name, dtype in (_PER_POSITION | _PER_SLOT).items():
            begin, end = ends[name]
            setattr(self, name, self._device[begin:end].view(dtype).view(shapes[name]))
            setattr(self.host, name, self._host[begin:end].view(dtype).view(shapes[name]).numpy())

    def upload(self):
        """Make the device see what was written through `host`."""
        if self._host is not self._device:
            self._device.copy_(self._host, non_blocking=True)

    def download(self):
        """Make `host` show what the kernels wrote; waits for them."""
        if self._host is not self._device:
            self._host.copy_(self._device)

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
