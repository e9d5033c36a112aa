"""A denoising step between tensors that stay where they are, so that a CUDA graph can hold it."""

from dataclasses import replace

from .. import ops
from ..config import DecodingConfig
from ..core.runner import Runner
from ..steps.inputs import StepBuffer
from .host_link import HostLink


class StaticStep:
    """A step of the cache slots [0, batch), which ends by laying out the next one.

    Every slot has the rows of a whole block, and as many for the clean tokens before it; what a slot does not
    need is padding. A step with `commit` computes all of them, one without leaves the clean rows out; models
    whose first position is predicted by a clean row have only the former.
    """

    def __init__(self, runner: Runner, decoding: DecodingConfig, link: HostLink, batch: int):
        self._runner, self._link = runner, link
        self._shift = ops.SHIFT if decoding.token_shift else 0
        state = runner.state
        slots, width = state.tokens.shape
        self._buffer = StepBuffer(slots, width, batch, decoding.token_shift, state.records.device)
        inputs, noisy = self._buffer.inputs, batch * width
        self._without_clean = replace(
            inputs, token_ids=inputs.token_ids[:noisy], slots=inputs.slots[:noisy],
            positions=inputs.positions[:noisy], query_blocks=inputs.query_blocks[:batch],
        )  # fmt: skip

    def run(self, commit: bool):
        """Compute the step that was laid out, and lay out the next."""
        self._runner.compute(self._buffer.inputs if commit or self._shift else self._without_clean)
        self._advance(ops.SNAPSHOT | ops.TAKE | ops.LAY_OUT)

    def lay_out(self):
        """The first step of what the block state holds."""
        self._advance(ops.LAY_OUT)

    def _advance(self, flags: int):
        link = self._link
        state = self._runner.state.records
        ops.advance(state, self._buffer.buffer, link.control, link.link, flags | self._shift)
