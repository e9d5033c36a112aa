"""What reads a finished step off the block state, whoever led it: transcripts, chunks, results."""

from time import perf_counter

import numpy as np

from ..errors import NumericalError
from ..outputs import Chunk, Forwards, Generation
from ..steps.block_state import BlockState
from .requests import Sequence


class StepReader:
    """Brings sequences up to a step that the block state shows."""

    def __init__(self, state: BlockState):
        self._state = state

    def read(self, sequence: Sequence) -> Generation | None:
        """Take what a step in which the sequence denoised has committed; the whole result if it is the end.

        Gives the listener its chunk, the last one excepted. Raises NumericalError, and whatever the tokenizer
        or the listener raises.
        """
        host, slot, request = self._state.host, sequence.slot, sequence.request
        sequence.denoisings += 1
        if host.status[slot] < 0:
            raise NumericalError("the model's logits are NaN or infinite for this request")
        length = int(host.block_length[slot])
        self._extend(sequence, length)
        if request.transcript.finish_reason:
            return self._result(sequence)
        if request.on_chunk:
            request.on_chunk(self.chunk(sequence))
        if host.status[slot] > 0:
            self._keep_statistics(sequence, length)
            sequence.tokens += host.tokens[slot, :length].tolist()
            sequence.read = 0
        return None

    def _extend(self, sequence: Sequence, length: int):
        """Give the transcript what the block now holds without a gap."""
        host, slot = self._state.host, sequence.slot
        is_open = host.open[slot, :length]
        gap_free = int(is_open.argmax()) if is_open.any() else length
        first = max(sequence.read, -sequence.output_start)  # what was given before is the prompt's
        if gap_free > first:
            sequence.request.transcript.extend(host.tokens[slot, first:gap_free].tolist())
        sequence.read = max(sequence.read, gap_free)

    def chunk(self, sequence: Sequence, generation: Generation | None = None) -> Chunk:
        """What the last step committed; positions past the end of a finished request are left out."""
        slot, host, start = sequence.slot, self._state.host, sequence.output_start
        length = int(host.block_length[slot])
        done = (host.open[slot, :length] == 0) & (host.given[slot, :length] == 0)
        new = np.flatnonzero(done & (host.commit_step[slot, :length] == host.step[slot] - 1))
        if generation:
            new = new[new + start < len(generation.token_ids)]
        transcript = sequence.request.transcript
        return Chunk(
            positions=(new + start).tolist(),
            token_ids=host.tokens[slot][new].tolist(),
            confidences=host.confidence[slot][new].tolist(),
            block=range(max(0, start), start + length),
            delta=transcript.take(),
            generation=generation,
            _pieces=transcript.pieces,
            _count=transcript.taken,
        )

    def _keep_statistics(self, sequence: Sequence, end: int):
        host, slot, first = self._state.host, sequence.slot, max(0, -sequence.output_start)
        sequence.confidences += host.confidence[slot, first:end].tolist()
        sequence.entropies += host.entropy[slot, first:end].tolist()
        sequence.commit_steps += host.commit_step[slot, first:end].tolist()

    def _result(self, sequence: Sequence) -> Generation:
        request, transcript = sequence.request, sequence.request.transcript
        count = len(transcript.token_ids)
        self._keep_statistics(sequence, count - sequence.output_start)
        now = perf_counter()
        return Generation(
            text=transcript.text(),
            token_ids=transcript.token_ids,
            prompt_token_ids=request.prompt,
            finish_reason=transcript.finish_reason,
            confidences=sequence.confidences[:count],
            entropies=sequence.entropies[:count],
            commit_steps=sequence.commit_steps[:count],
            nfe=sequence.denoisings,
            tokens_per_forward=count / sequence.denoisings,
            seconds=now - request.submitted,
            forwards=Forwards(sequence.prefills, sequence.denoisings),
            queue_seconds=request.admitted - request.submitted,
        )
