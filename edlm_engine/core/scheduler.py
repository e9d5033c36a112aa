"""Which sequences run, and what each of them puts into the next forward."""

from bisect import insort
from concurrent.futures import CancelledError, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter

import torch

from .. import ops
from ..config import DecodingConfig
from ..errors import RequestTimeoutError
from ..outputs import Generation
from ..steps.block_state import OPEN, BlockState
from ..steps.inputs import ForwardInputs, QueryBlock, StepBuffer, append_blocks, to_device
from ..steps.kv_cache import PagedKVCache
from ..steps.policies import Policy
from ..steps.prompts import prompt_blocks
from .observers import Observers
from .requests import Request, Sequence
from .statistics import Counters
from .step_reader import StepReader


@dataclass(slots=True)
class Plan:
    """What the sequences put into a forward.

    prompts: query blocks of prompts, by sequence; denoising: the sequences whose blocks take part.
    """

    prompts: list[tuple[Sequence, list[QueryBlock]]] = field(default_factory=list)
    denoising: list[Sequence] = field(default_factory=list)

    def selecting(self) -> dict[Policy, list[int]]:
        """Policies without a native rule, and the slots in which they commit."""
        chosen: dict[Policy, list[int]] = {}
        for sequence in self.denoising:
            if sequence.policy.rule is None:
                chosen.setdefault(sequence.policy, []).append(sequence.slot)
        return chosen


class Scheduler:
    """Admits requests by priority, then first come, first served, plans forwards, and lets sequences leave.

    max_rows: most rows of a forward that prompts may fill; a bidirectional prompt longer than that runs
        in a forward without other prompts.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        state: BlockState,
        decoding: DecodingConfig,
        *,
        max_rows: int,
        observers: Observers | None = None,
    ):
        self.cache, self.state, self.decoding, self.max_rows = cache, state, decoding, max_rows
        self.waiting: list[Request] = []  # in the order of admission
        self.counters = Counters()
        self.running: list[Sequence] = []
        self._reader = StepReader(state)
        self._observers = observers or Observers()
        self.slots, shift = len(state.records), decoding.token_shift
        self._buffer = StepBuffer(self.slots, state.tokens.shape[1], self.slots, shift)
        self._control = torch.zeros(ops.CONTROL_WORDS, dtype=torch.int32, device="cpu")
        self._shift = ops.SHIFT if shift else 0

    @property
    def can_admit(self) -> bool:
        return bool(self.waiting) and self.cache.has_room(self.waiting[0].length)

    @property
    def prompts_due(self) -> bool:
        """Whether the cache lacks a part of a running sequence's prompt."""
        return any(sequence.prompt_due for sequence in self.running)

    @property
    def host_must_lead(self) -> bool:
        """Whether the next step has something that only the host can do: rows of prompts, or a policy
        without a native rule."""
        host = self.state.host
        return any(not host.active[s.slot] or s.policy.rule is None for s in self.running)

    def add(self, request: Request):
        """Let a request wait for its turn."""
        insort(self.waiting, request, key=lambda waiting: -waiting.priority)

    def admit(self):
        """Move requests from waiting to running while slots and pages last."""
        while self.waiting:
            request = self.waiting[0]
            slot = self.cache.reserve(request.length)
            if slot is None:
                return
            self.waiting.pop(0)
            if not request.future.set_running_or_notify_cancel():
                self.cache.release(slot)
                self.counters.cancelled += 1
                continue
            request.admitted = perf_counter()
            decoding = self.decoding
            length = request.params.block_length or decoding.block_length
            try:
                sequence = Sequence(
                    request, slot, length, aligned=decoding.aligned, shift=decoding.token_shift
                )
            except Exception as error:
                self.cache.release(slot)
                self._refuse(request, error)
                continue
            self.running.append(sequence)
            self.counters.prompt_tokens += len(request.prompt)
            try:
                self._begin(sequence)
            except Exception as error:  # of this request alone
                self.fail(sequence, error)

    def _begin(self, sequence: Sequence):
        """Write into the block state all that the steps of the sequence need to know."""
        request, slot, state = sequence.request, sequence.slot, self.state
        params, start = request.params, sequence.prefix
        state.begin_request(
            slot, sequence.policy, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p,
            seed=request.seed,
        )  # fmt: skip
        pending = request.prompt[sequence.prompt_rows : start]
        ending_ids = request.transcript.ending_ids
        state.begin_sequence(slot, start, pending, request.length, sequence.block_length, ending_ids)
        given = request.prompt[start:]
        length = min(sequence.block_length, request.length - start)
        state.begin_block(slot, given + [OPEN] * (length - len(given)))

    def plan(self) -> Plan:
        """The next forward of all running sequences. Changes nothing."""
        plan, rows, active = Plan(), 0, self.state.host.active
        for sequence in self.running:
            done = sequence.cached
            if not active[sequence.slot]:
                blocks = self._prompt_blocks(sequence, rows)
                if blocks:
                    plan.prompts.append((sequence, blocks))
                    rows += sum(block.length for block in blocks)
                    done = blocks[-1].start + blocks[-1].length
            if active[sequence.slot] or done >= sequence.prompt_rows:
                plan.denoising.append(sequence)
        return plan

    def _prompt_blocks(self, sequence: Sequence, rows: int) -> list[QueryBlock]:
        if not sequence.prompt_due:
            return []
        most, prefill = self.max_rows - rows, self.decoding.prefill
        if prefill == "bidirectional" and not rows:
            most = max(most, sequence.prompt_rows)
        return prompt_blocks(
            sequence.slot, sequence.cached, sequence.prefix, prefill, sequence.block_length, most,
            sequence.prompt_rows,
        )  # fmt: skip

    def begin(self, plan: Plan):
        """Make the sequences active that denoise in the plan for the first time."""
        for sequence in plan.denoising:
            self.state.host.active[sequence.slot] = 1

    def lay_out(self, plan: Plan) -> ForwardInputs:
        """The tensors of a plan that has begun. They are valid until the next call."""
        flags = ops.LAY_OUT | ops.COMPACT | self._shift
        ops.advance(self.state.host_records, self._buffer.buffer, self._control, None, flags)
        inputs = self._buffer.leading(*self._control[4:7].tolist())
        if plan.prompts:
            inputs = append_blocks(
                inputs,
                [
                    (block, sequence.request.prompt[block.start : block.start + block.length])
                    for sequence, blocks in plan.prompts
                    for block in blocks
                ],
            )
        return to_device(inputs, self.state.records.device)

    def finish(self, plan: Plan):
        """Take what the forward of a plan has done: finished and failed sequences leave, others move on."""
        denoising = set(plan.denoising)
        for sequence, blocks in plan.prompts:
            sequence.cached = blocks[-1].start + blocks[-1].length
            sequence.prefills += sequence not in denoising
        self.read(plan.denoising)
        if plan.denoising:
            ops.advance(self.state.host_records, None, self._control, None, ops.TAKE | self._shift)

    def read(self, sequences: list[Sequence]):
        """Read a step that the block state shows, in which these sequences denoised."""
        self._observers.begin("read")
        self.counters.steps += 1
        for sequence in sequences:
            try:
                if (generation := self._reader.read(sequence)) is not None:
                    self._end(sequence, generation)
            except Exception as error:  # of this request alone: its numbers, its tokenizer, its listener
                self.fail(sequence, error)
        self._observers.end("read")

    def _end(self, sequence: Sequence, generation: Generation):
        request, counters = sequence.request, self.counters
        chunk = self._reader.chunk(sequence, generation) if request.on_chunk else None
        self._leave(sequence)
        if chunk:
            request.on_chunk(chunk)
        counters.finished += 1
        counters.tokens += len(generation.token_ids)
        counters.forwards += generation.nfe
        counters.queue_seconds += generation.queue_seconds
        counters.run_seconds += generation.seconds - generation.queue_seconds
        request.future.set_result(generation)

    def fail(self, sequence: Sequence, error: BaseException):
        """End one sequence with an error; the others are not touched."""
        if sequence in self.running:
            self._leave(sequence)
        self._refuse(sequence.request, error)

    def _refuse(self, request: Request, error: BaseException):
        """Let a request that has no slot, or none any more, end with an error."""
        if isinstance(error, CancelledError):
            self.counters.cancelled += 1
        else:
            self.counters.failed += 1
        with suppress(InvalidStateError):  # its caller has cancelled the future, or it has its result
            request.future.set_exception(error)

    def drop_ended(self):
        """Free the slots and pages of requests whose caller has gone, and of those whose time is over."""
        for request in [r for r in self.waiting if r.cancelled]:
            self.waiting.remove(request)
            self.counters.cancelled += 1
            request.future.cancel()
        for request in [r for r in self.waiting if r.expired]:
            self.waiting.remove(request)
            if request.future.set_running_or_notify_cancel():
                self._refuse(request, _timeout(request, "waiting for its turn"))
        for sequence in [s for s in self.running if s.request.cancelled]:
            self.fail(sequence, CancelledError())
        for sequence in [s for s in self.running if s.request.expired]:
            done = f"with {len(sequence.request.transcript.token_ids)} tokens generated"
            self.fail(sequence, _timeout(sequence.request, done))

    def fail_all(self, error: BaseException):
        """End every request, waiting or running, with an error."""
        for sequence in list(self.running):
            self.fail(sequence, error)
        while self.waiting:
            request = self.waiting.pop()
            if request.future.set_running_or_notify_cancel():
                self._refuse(request, error)

    def _leave(self, sequence: Sequence):
        self.running.remove(sequence)
        self.state.host.active[sequence.slot] = 0
        self.cache.release(sequence.slot)


def _timeout(request: Request, state: str) -> RequestTimeoutError:
    limit = f"timeout={request.timeout:g} s"
    return RequestTimeoutError(f"the request did not finish within {limit}; it ended {state}")
