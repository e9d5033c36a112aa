"""Which sequences run, and what each of them puts into the next forward."""

from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from ..config import DecodingConfig
from ..errors import NumericalError
from ..outputs import Chunk, Forwards, Generation
from ..params import SamplingParams
from ..steps.block_state import BlockState
from ..steps.inputs import ForwardInputs, QueryBlock
from ..steps.kv_cache import PagedKVCache
from ..steps.layout import ForwardBuilder, add_active_block, prompt_blocks
from .transcript import Transcript


@dataclass(eq=False, slots=True)
class Request:
    """One prompt on its way: what the caller holds while the engine works."""

    prompt: list[int]
    params: SamplingParams
    seed: int
    transcript: Transcript
    on_chunk: object = None  # callable(Chunk) for streams
    future: Future = field(default_factory=Future)
    submitted: float = field(default_factory=perf_counter)
    cancelled: bool = False

    @property
    def length(self) -> int:
        """Positions of the prompt and all that may follow."""
        return len(self.prompt) + self.params.max_new_tokens


class Sequence:
    """A running request: its slot, its tokens, and how far its clean keys and values reach.

    block_length: of all its blocks but the last, which may be shorter; tokens: prompt and finished blocks;
    cached: the leading positions whose K/V in the cache is final; the active block starts at len(tokens).
    """

    def __init__(self, request: Request, slot: int, block_length: int):
        self.request, self.slot, self.block_length = request, slot, block_length
        self.tokens = list(request.prompt)
        self.cached = 0
        self.confidences: list[float] = []
        self.commit_steps: list[int] = []
        self.gap_free = 0  # leading positions of the active block already given to the transcript
        self.prefills = self.denoisings = self.commits = 0

    @property
    def block_start(self) -> int:
        return len(self.tokens)

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


class Scheduler:
    """Admits requests first come, first served, lays out forwards, and reads the results off the block state.

    max_rows: most rows of a forward that prompts may fill; a bidirectional prompt longer than that runs
        in a forward without other prompts.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        state: BlockState,
        decoding: DecodingConfig,
        *,
        fused_commit: bool,
        max_rows: int,
    ):
        self.cache, self.state, self.decoding = cache, state, decoding
        # an autoregressive step is the commit of the last token: there is nothing to take apart
        self.fused_commit = fused_commit or decoding.autoregressive
        self.max_rows = max_rows
        self.waiting: deque[Request] = deque()
        self.running: list[Sequence] = []
        self._denoising: list[Sequence] = []  # sequences with an active block in the forward under way

    @property
    def can_admit(self) -> bool:
        return bool(self.waiting) and self.cache.has_room(self.waiting[0].length)

    def admit(self):
        """Move requests from waiting to running while slots and pages last."""
        while self.waiting:
            request = self.waiting[0]
            slot = self.cache.reserve(request.length)
            if slot is None:
                return
            self.waiting.popleft()
            if not request.future.set_running_or_notify_cancel():
                self.cache.release(slot)
                continue
            sequence = Sequence(request, slot, request.params.block_length or self.decoding.block_length)
            self.running.append(sequence)  # before anything can raise, so that it is failed and not lost
            self.state.begin_request(slot, request.params, request.seed)
            self._begin_block(sequence)

    def _begin_block(self, sequence: Sequence):
        left = sequence.request.params.max_new_tokens - sequence.generated
        self.state.begin_block(sequence.slot, min(left, sequence.block_length))
        sequence.gap_free = 0

    def layout(self) -> ForwardInputs:
        """The next forward of all running sequences. Call only while there are any."""
        builder = ForwardBuilder(len(self.state.step))
        self._denoising = []
        for sequence in self.running:
            self._add(builder, sequence)
        return builder.build(self.state.tokens.device)

    def _add(self, builder: ForwardBuilder, sequence: Sequence):
        blocks = self._clean_blocks(builder, sequence)
        for block in blocks:
            builder.add(block, sequence.tokens[block.start : block.start + block.length])
            sequence.cached = block.start + block.length
            builder.prompt_rows += block.length if block.start < len(sequence.request.prompt) else 0
        pending = sequence.cached < sequence.block_start
        if not pending and (self.fused_commit or not blocks):
            add_active_block(
                builder, self.state, sequence.slot, sequence.block_start, sequence.tokens[-1],
                shift=self.decoding.token_shift, fresh=bool(blocks),
            )  # fmt: skip
            self._denoising.append(sequence)
            sequence.denoisings += 1
        elif blocks and blocks[0].start < len(sequence.request.prompt):
            sequence.prefills += 1
        elif blocks:
            sequence.commits += 1

    def _clean_blocks(self, builder: ForwardBuilder, sequence: Sequence) -> list[QueryBlock]:
        """Query blocks of known tokens whose keys and values the cache still lacks."""
        prompt, slot, cached = len(sequence.request.prompt), sequence.slot, sequence.cached
        prefill = self.decoding.prefill
        if cached < prompt:
            room = self.max_rows - builder.prompt_rows
            if prefill == "bidirectional" and not builder.prompt_rows:
                room = max(room, prompt)
            return prompt_blocks(slot, cached, prompt, prefill, sequence.block_length, room)
        if cached < sequence.block_start:
            return [QueryBlock(slot, cached, sequence.block_start - cached, sequence.block_start)]
        return []

    @property
    def prompts_due(self) -> bool:
        """Whether the cache lacks a part of a running sequence's prompt."""
        return any(sequence.cached < len(sequence.request.prompt) for sequence in self.running)

    def hand_over(self):
        """Write into the block state all that ops.advance needs to go on from here by itself. The prompts
        must be in the cache."""
        self.state.host.active[:] = 0
        for sequence in self.running:
            clean = sequence.tokens[sequence.cached :]
            if self.decoding.token_shift:  # the row of the last clean token predicts the first of the block
                clean = clean or sequence.tokens[-1:]
            self.state.go_on_from(
                sequence.slot, sequence.block_start, clean, sequence.request.length, sequence.block_length,
                sequence.request.transcript.ending_ids,
            )  # fmt: skip

    def replay(self):
        """advance() by a step that ops.advance led to, once the block state shows what it left."""
        self._denoising = [s for s in self.running if self.state.host.active[s.slot]]
        for sequence in self._denoising:
            sequence.cached = sequence.block_start
            sequence.denoisings += 1
        self.advance()

    def advance(self):
        """Take the committed tokens of the last forward; finished and failed sequences leave."""
        for sequence in self._denoising:
            try:
                self._advance(sequence)
            except Exception as error:  # of this request alone: its numbers, its tokenizer, its listener
                self.fail(sequence, error)

    def _advance(self, sequence: Sequence):
        slot = sequence.slot
        if self.state.host.status[slot] < 0:
            raise NumericalError("the model's logits are NaN or infinite for this request")
        self._take(sequence)
        if sequence.request.transcript.finish_reason:
            self._finish(sequence)
        elif self.state.host.status[slot] > 0:
            length = int(self.state.host.block_length[slot])
            sequence.tokens += self.state.host.tokens[slot, :length].tolist()
            self._keep_statistics(sequence, length)
            self._begin_block(sequence)

    def _take(self, sequence: Sequence):
        """Give the transcript what the block now holds without a gap, and the listener its chunk."""
        slot, request = sequence.slot, sequence.request
        length = int(self.state.host.block_length[slot])
        masked = self.state.host.masked[slot, :length]
        gap_free = int(masked.argmax()) if masked.any() else length
        if gap_free > sequence.gap_free:
            request.transcript.extend(self.state.host.tokens[slot, sequence.gap_free : gap_free].tolist())
            sequence.gap_free = gap_free
        if request.on_chunk and not request.transcript.finish_reason:
            request.on_chunk(self._chunk(sequence))

    def _chunk(self, sequence: Sequence, generation: Generation | None = None) -> Chunk:
        """What the last step committed; positions past the end of a finished request are left out."""
        slot, state = sequence.slot, self.state.host
        length = int(state.block_length[slot])
        done = (state.masked[slot, :length] == 0) & (state.commit_step[slot, :length] == state.step[slot] - 1)
        new = np.flatnonzero(done)
        if generation:
            new = new[new + sequence.generated < len(generation.token_ids)]
        return Chunk(
            positions=(new + sequence.generated).tolist(),
            token_ids=state.tokens[slot][new].tolist(),
            confidences=state.confidence[slot][new].tolist(),
            block=range(sequence.generated, sequence.generated + length),
            text=generation.text if generation else sequence.request.transcript.text(),
            generation=generation,
        )

    def _keep_statistics(self, sequence: Sequence, count: int):
        sequence.confidences += self.state.host.confidence[sequence.slot, :count].tolist()
        sequence.commit_steps += self.state.host.commit_step[sequence.slot, :count].tolist()

    def _finish(self, sequence: Sequence):
        request, transcript = sequence.request, sequence.request.transcript
        count = len(transcript.token_ids)
        self._keep_statistics(sequence, count - sequence.generated)
        nfe = sequence.denoisings + sequence.commits
        generation = Generation(
            text=transcript.text(),
            token_ids=transcript.token_ids,
            prompt_token_ids=request.prompt,
            finish_reason=transcript.finish_reason,
            confidences=sequence.confidences[:count],
            commit_steps=sequence.commit_steps[:count],
            nfe=nfe,
            tokens_per_forward=count / nfe,
            seconds=perf_counter() - request.submitted,
            forwards=Forwards(sequence.prefills, sequence.denoisings, sequence.commits),
        )
        chunk = self._chunk(sequence, generation) if request.on_chunk else None
        self._leave(sequence)
        if chunk:
            request.on_chunk(chunk)
        request.future.set_result(generation)

    def fail(self, sequence: Sequence, error: Exception):
        """End one sequence with an error; the others are not touched."""
        if sequence in self.running:
            self._leave(sequence)
        sequence.request.future.set_exception(error)

    def drop_cancelled(self):
        """Free the slots and pages of requests whose caller has gone."""
        for request in [r for r in self.waiting if r.cancelled]:
            self.waiting.remove(request)
            request.future.cancel()
        for sequence in [s for s in self.running if s.request.cancelled]:
            self.fail(sequence, CancelledError())

    def _leave(self, sequence: Sequence):
        self.running.remove(sequence)
        self.cache.release(sequence.slot)
