"""What the device that leads and the host that follows tell each other, without waiting for each other."""

import torch

from .. import ops
from ..steps.block_state import BlockState

_WRITTEN, _PAUSE, _STOP = 0, 1, 2  # words of the first row


class HostLink:
    """Memory that both sides see.

    control: int32 [CONTROL_WORDS] on the device. link: int32 [1 + ring_size, words of the block state] on the
    host, on a GPU pinned. The device writes snapshots of the block state there and counts them; the host
    writes that it wants a pause, or the end of a slot. See ops.advance.
    ring_size: the most snapshots that may lie unread.
    """

    def __init__(self, state: BlockState, ring_size: int):
        device = state.records.device
        pinned = {"device": "cpu", "pin_memory": device.type == "cuda"}
        self.control = torch.zeros(ops.CONTROL_WORDS, dtype=torch.int32, device=device)
        self.link = torch.zeros(1 + ring_size, state.records.numel(), dtype=torch.int32, **pinned)
        self._words = self.link[0].numpy()
        self._read = 0

    def reset(self):
        """Begin anew. No step may be under way."""
        self.control.zero_()
        self._words[:] = 0
        self._read = 0

    def next(self) -> torch.Tensor | None:
        """The next snapshot in turn, int32 [words of the block state], valid until as many more as the ring
        holds are written; None: not yet."""
        if self._read == self._words[_WRITTEN]:
            return None
        self._read += 1
        return self.link[1 + (self._read - 1) % (len(self.link) - 1)]

    def pause(self):
        """Ask the device to end its loop after the step under way."""
        self._words[_PAUSE] = 1

    def stop(self, slot: int):
        """Ask the device to leave a slot out from the next step on."""
        self._words[_STOP + slot] = 1
