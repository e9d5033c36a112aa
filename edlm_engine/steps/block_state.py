"""The active blocks of all sequences, as tensors that the kernels read and change in place."""

import math
from collections.abc import Collection
from types import SimpleNamespace

import numpy as np
import torch

# name -> type and shape: per position [slots, block_length], per slot [slots], or [slots, STOP_IDS]
_SNAPSHOT = {
    "tokens": (torch.int32, "position"),  # the mask token where masked
    "masked": (torch.uint8, "position"),
    "confidence": (torch.float32, "position"),  # valid where committed
    "commit_step": (torch.int32, "position"),  # valid where committed
    "num_masked": (torch.int32, "slot"),
    "block_length": (torch.int32, "slot"),
    "step": (torch.int32, "slot"),  # denoising steps done in this block
    "status": (torch.int32, "slot"),  # 0: masks left, 1: block finished, -1: NaN or infinite logits
    "active": (torch.int32, "slot"),  # 1: took part in the step; this and the next group: ops.advance alone
}
_REST = {
    "clean": (torch.int32, "position"),  # tokens of the `pending` positions before the block
    "start": (torch.int32, "slot"),  # position of the block
    "pending": (torch.int32, "slot"),  # positions before it whose keys and values are still to be written
    "end": (torch.int32, "slot"),  # position behind the last block
    "full_length": (torch.int32, "slot"),  # of every block but the last
    "stop_ids": (torch.int32, "stop"),  # -1: none
    "threshold": (torch.float32, "slot"),  # NaN: fixed schedule
    "steps_per_block": (torch.int32, "slot"),  # 0: unset
    "temperature": (torch.float32, "slot"),
    "top_k": (torch.int32, "slot"),
    "top_p": (torch.float32, "slot"),
    "seed": (torch.int64, "slot"),
}
FIELDS = _SNAPSHOT | _REST
STOP_IDS = 8  # of a request; more are found by the host alone, a little later
_ALIGNMENT = 64


class BlockState:
    """One row per cache slot, under the names above.

    Every tensor is an attribute, and `host` has the same names as numpy arrays, for code that looks at single
    elements. All of them lie in one buffer: on a GPU, upload() and download() move it whole; on the CPU
    tensors and arrays are the same memory, unless `apart`. `snapshot`: uint8 [bytes], the leading part of the
    buffer, which is all that a step changes and the host needs to see; load_snapshot() puts one in `host`.
    """

    def __init__(
        self, slots: int, block_length: int, mask_token_id: int | None, device="cpu", apart: bool = False
    ):
        self.mask_token_id = mask_token_id
        self.host = SimpleNamespace()
        shapes = {"position": (slots, block_length), "slot": (slots,), "stop": (slots, STOP_IDS)}
        places, size = {}, 0
        for name, (dtype, kind) in FIELDS.items():
            begin = -(-size // _ALIGNMENT) * _ALIGNMENT
            places[name] = (begin, size := begin + math.prod(shapes[kind]) * dtype.itemsize)
        self._device = torch.zeros(size, dtype=torch.uint8, device=device)
        on_gpu = self._device.device.type != "cpu"
        self._host = (
            torch.zeros(size, dtype=torch.uint8, pin_memory=on_gpu) if on_gpu or apart else self._device
        )
        for name, (dtype, kind) in FIELDS.items():
            begin, end = places[name]
            setattr(self, name, self._device[begin:end].view(dtype).view(shapes[kind]))
            setattr(self.host, name, self._host[begin:end].view(dtype).view(shapes[kind]).numpy())
        self.snapshot = self._device[: places[next(iter(_REST))][0]]

    def upload(self):
        """Make the device see what was written through `host`."""
        if self._host is not self._device:
            self._device.copy_(self._host, non_blocking=True)

    def download(self):
        """Make `host` show what the kernels wrote; waits for them."""
        if self._host is not self._device:
            self._host.copy_(self._device)

    def load_snapshot(self, snapshot: torch.Tensor):
        """Make `host` show the state of a step that is past: a copy of `snapshot` from then."""
        self._host[: len(snapshot)] = snapshot

    def begin_request(self, slot: int, params, seed: int):
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

    def go_on_from(self, slot: int, start: int, clean, end: int, full_length: int, stop_ids: Collection[int]):
        """What ops.advance needs to know of a slot whose block at `start` is under way: see there. clean: the
        pending tokens before it."""
        host = self.host
        host.active[slot], host.start[slot], host.end[slot] = 1, start, end
        host.pending[slot], host.full_length[slot] = len(clean), full_length
        host.clean[slot, : len(clean)] = clean
        host.stop_ids[slot] = -1
        known = np.fromiter(stop_ids, np.int32)[:STOP_IDS]
        host.stop_ids[slot, : len(known)] = known
