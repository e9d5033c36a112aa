"""One step: forward, row statistics, unmask."""

import torch

from ..models.transformer import Transformer
from ..steps.block_state import BlockState
from ..steps.confidence import commit_confident
from ..steps.inputs import ForwardInputs
from ..steps.kv_cache import PagedKVCache


class Runner:
    """Runs steps of one model over one cache and one block state."""

    def __init__(self, model: Transformer, cache: PagedKVCache, state: BlockState):
        self.model, self.cache, self.state = model, cache, state
        self._ids = self._stats = torch.empty(0)

    def step(self, inputs: ForwardInputs):
        """Run all rows of `inputs`; the slots that denoise have new tokens in the block state afterwards."""
        if len(inputs.head_rows):
            self.state.upload()  # with a download behind it: until then the host must leave its side alone
        self.compute(inputs)
        if len(inputs.head_rows):
            self.state.download()

    def compute(self, inputs: ForwardInputs):
        """step() on the device alone."""
        hidden = self.model.forward(inputs, self.cache)
        if len(hidden):
            ids, stats = self._row_stats(hidden, inputs)
            commit_confident(self.state, ids, stats, inputs.first_row)

    def buffers(self) -> list[torch.Tensor]:
        """The memory that steps use now: later, larger ones may replace it."""
        return [self._ids, self._stats, *self.model.buffers()]

    def _row_stats(self, hidden: torch.Tensor, inputs: ForwardInputs):
        state = self.state
        if len(hidden) > len(self._ids):
            rows = 1 << (len(hidden) - 1).bit_length()
            self._ids = torch.empty(rows, 2, dtype=torch.int32, device=hidden.device)
            self._stats = torch.empty(rows, 5, dtype=torch.float32, device=hidden.device)
        ids, stats = self._ids[: len(hidden)], self._stats[: len(hidden)]
        forbidden = -1 if state.mask_token_id is None else state.mask_token_id
        self.model.head.row_stats(
            hidden, inputs.head_slots, inputs.head_positions,
            state.temperature, state.top_k, state.top_p, state.seed, state.step, forbidden, ids, stats,
        )  # fmt: skip
        return ids, stats
