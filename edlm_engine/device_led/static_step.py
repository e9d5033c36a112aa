"""A denoising step between tensors that stay where they are, so that a CUDA graph can hold it."""

from dataclasses import replace

import torch

from .. import ops
from ..config import DecodingConfig
from ..core.runner import Runner
from ..steps.inputs import ForwardInputs
from .host_link import HostLink


class StaticStep:
    """A step of the cache slots [0, batch), which ends by laying out the next one.

    Every slot has the rows of a whole block, and as many for the clean tokens before it; what a slot does not
    need is padding. A step with `commit` computes all of them, one without leaves the clean rows out; models
    whose first position is predicted by a clean row have only the former.
    """

    def __init__(self, runner: Runner, decoding: DecodingConfig, link: HostLink, batch: int):
        self._runner, self._link = runner, link
        self._mask_id = -1 if decoding.autoregressive else decoding.mask_token_id
        self._shift = decoding.token_shift
        slots, width = runner.state.tokens.shape
        heads, noisy = batch * width, 0 if decoding.autoregressive else batch * width

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=runner.state.tokens.device)

        rows = noisy + heads
        self._inputs = ForwardInputs(
            token_ids=ints(rows), slots=ints(rows), positions=ints(rows), query_blocks=ints(2 * batch, 6),
            head_rows=ints(heads), head_slots=ints(heads), head_positions=ints(heads), first_row=ints(slots),
        )  # fmt: skip
        self._without_clean = replace(
            self._inputs, token_ids=self._inputs.token_ids[:noisy], slots=self._inputs.slots[:noisy],
            positions=self._inputs.positions[:noisy], query_blocks=self._inputs.query_blocks[:batch],
        )  # fmt: skip

    def run(self, commit: bool):
        """Compute the step that was laid out, and lay out the next."""
        self._runner.compute(self._inputs if commit or self._shift else self._without_clean)
        self._advance(lay_out_only=False)

    def lay_out(self):
        """The first step of what the block state holds."""
        self._advance(lay_out_only=True)

    def _advance(self, lay_out_only: bool):
        state, inputs, link = self._runner.state, self._inputs, self._link
        ops.advance(
            state.tokens, state.masked, state.clean, state.num_masked, state.block_length, state.step,
            state.status, state.active, state.start, state.pending, state.end, state.full_length,
            state.stop_ids, inputs.token_ids, inputs.slots, inputs.positions, inputs.query_blocks,
            inputs.head_rows, inputs.head_slots, inputs.head_positions, inputs.first_row, link.control,
            state.snapshot, link.ring, link.host, self._mask_id, self._shift, lay_out_only,
        )  # fmt: skip
