"""What the steps of a device and the host tell each other without waiting: snapshots there, wishes back."""

import torch

from ..steps.block_state import BlockState

_SNAPSHOTS, _PAUSE, _STOP = 0, 1, 2  # places in `host`


class HostLink:
    """Memory that both sides see.

    control: int32 [4] on the device, LoopControl in csrc/params.h. ring: uint8 [ring_size, snapshot bytes]
    and host: int32 [2 + slots], both in host memory, on a GPU pinned: see ops.advance.
    ring_size: the most snapshots that may lie unread.
    """

    def __init__(self, state: BlockState, ring_size: int):
        device, slots = state.tokens.device, len(state.step)
        pinned = {"pin_memory": device.type == "cuda"}
        self.control = torch.zeros(4, dtype=torch.int32, device=device)
        self.ring = torch.zeros(ring_size, len(state.snapshot), dtype=torch.uint8, **pinned)
        self.host = torch.zeros(_STOP + slots, dtype=torch.int32, **pinned)
        self._words = self.host.numpy()
        self._read = 0

    def reset(self):
        """Begin anew. No step may be under way."""
        self.control.zero_()
        self._words[:] = 0
        self._read = 0

    def next(self) -> torch.Tensor | None:
        """The next snapshot in turn, valid until as many more as the ring holds are written; None: not
        yet."""
        if self._read == self._words[_SNAPSHOTS]:
            return None
        self._read += 1
        return self.ring[(self._read - 1) % len(self.ring)]

    def pause(self):
        """Ask the device to end its loop after the step under way."""
        self._words[_PAUSE] = 1

    def stop(self, slot: int):
        """Ask the device to leave a slot out from the next step on."""
        self._words[_STOP + slot] = 1
