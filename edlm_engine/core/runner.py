"""One step: forward, row statistics, commit."""

import torch

from .. import ops
from ..models.transformer import Transformer
from ..steps.block_state import BlockState
from ..steps.inputs import ForwardInputs
from ..steps.kv_cache import PagedKVCache
from ..steps.policies import Policy
from ..steps.selecting import select
from .observers import Observers


class Runner:
    """Runs steps of one model over one cache and one block state."""

    def __init__(
        self, model: Transformer, cache: PagedKVCache, state: BlockState, observers: Observers | None = None
    ):
        self.model, self.cache, self.state = model, cache, state
        self._observers = observers or Observers()
        self._ids = self._stats = torch.empty(0, dtype=torch.int32, device="cpu")

    def step(self, inputs: ForwardInputs, selecting: dict[Policy, list[int]] | None = None):
        """Run all rows of `inputs`; the slots that denoise have new tokens in the block state afterwards.
        selecting: policies without a native rule, and the slots that they commit in."""
        if len(inputs.head_rows):
            self.state.upload()  # with a download behind it: until then the host must leave its side alone
        self.compute(inputs, selecting)
        if len(inputs.head_rows):
            self._observers.begin("wait")
            self.state.download()
            self._observers.end("wait")

    def compute(self, inputs: ForwardInputs, selecting: dict[Policy, list[int]] | None = None):
        """step() on the device alone."""
        self._observers.begin("forward")
        hidden = self.model.forward(inputs, self.cache)
        self._observers.end("forward")
        if len(hidden):
            self._observers.begin("commit")
            self._commit(hidden, inputs, selecting or {})
            self._observers.end("commit")

    def buffers(self) -> list[torch.Tensor]:
        """The memory that steps use now: later, larger ones may replace it."""
        return [self._ids, self._stats, *self.model.buffers()]

    def _commit(self, hidden: torch.Tensor, inputs: ForwardInputs, selecting: dict[Policy, list[int]]):
        state, count = self.state, len(hidden)
        if count > len(self._ids):
            rows, device = 1 << (count - 1).bit_length(), hidden.device
            self._ids = torch.empty(rows, len(ops.ID_COLUMNS), dtype=torch.int32, device=device)
            self._stats = torch.empty(rows, len(ops.STAT_COLUMNS), dtype=torch.float32, device=device)
        ids, stats = self._ids[:count], self._stats[:count]
        forbidden = -1 if state.mask_token_id is None else state.mask_token_id
        self.model.head.row_stats(
            hidden, state.records, inputs.head_slots, inputs.head_positions, forbidden, ids, stats
        )
        for policy, slots in selecting.items():
            select(policy, state, slots, stats, inputs.first_row)
        ops.unmask(state.records, ids, stats, inputs.first_row)
