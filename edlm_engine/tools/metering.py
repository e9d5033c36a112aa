"""Times of an engine's steps."""

import statistics
import threading
import time
from collections.abc import Iterable
from concurrent.futures import CancelledError

import torch

from ..core.requests import Request
from ..core.scheduler import Plan
from ..core.transcript import Transcript
from ..engine import Engine
from ..params import SamplingParams
from ..steps.block_state import OPEN


class Spans:
    """Durations of moments: on a CPU by the clock, on a GPU between events that go with the work."""

    def __init__(self, on_gpu: bool):
        self._on_gpu = on_gpu
        self._begin = None
        self._pairs: list[tuple] = []

    def begin(self):
        self._begin = self._now()

    def end(self):
        if self._begin is not None:
            self._pairs.append((self._begin, self._now()))
        self._begin = None

    def _now(self):
        if not self._on_gpu:
            return time.perf_counter()
        if torch.cuda.is_current_stream_capturing():
            return None  # nothing is done yet, and replays do not come by here
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> list[float]:
        """Of each; its work must be done."""
        if self._on_gpu:
            return [begin.elapsed_time(end) / 1e3 for begin, end in self._pairs]
        return [end - begin for begin, end in self._pairs]


class CpuTime:
    """What moments cost the thread that they happen on, in seconds of its processor: sleeping costs
    nothing."""

    def __init__(self):
        self.seconds = 0.0
        self._begin: float | None = None

    def begin(self):
        self._begin = time.thread_time()

    def end(self):
        if self._begin is not None:
            self.seconds += time.thread_time() - self._begin
        self._begin = None


class _Run:
    """Observes one run of an engine."""

    def __init__(self, engine: Engine):
        on_gpu = engine.device.startswith("cuda")
        self._scheduler = engine._loop._scheduler
        self.forward, self.commit = Spans(on_gpu), Spans(on_gpu)
        self.host, self.apart = CpuTime(), CpuTime()
        self.read: list[tuple[float, bool]] = []  # when the host came to a step; prompts were due still
        # On a GPU the host waits actively in one moment, on a CPU it computes in the others.
        apart = ("wait",) if on_gpu else ("forward", "commit")
        self._clocks = {"forward": [self.forward], "commit": [self.commit], "step": [self.host]}
        for moment in apart:
            self._clocks.setdefault(moment, []).append(self.apart)
        self.idle = threading.Event()
        self.idle.set()

    def begin(self, moment: str):
        if moment == "step":
            self.idle.clear()
        elif moment == "read":  # at once: what follows may wake who asks
            self.read.append((time.perf_counter(), self._scheduler.prompts_due))
        for clock in self._clocks.get(moment, ()):
            clock.begin()

    def end(self, moment: str):
        for clock in self._clocks.get(moment, ()):
            clock.end()
        if moment == "step":
            self.idle.set()


class Meter:
    """Times an engine's steps, whoever leads them: on a CPU all of them; on a GPU those that the host lays
    out. Of captured ones it sees when the host has read them."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def run(self, prompts, **params) -> dict[str, float | None]:
        """All prompts in one batch, to the end: rates, times and shares of the time.

        ms_per_step: from one step to the next, all included, once the prompts are in the cache.
        ms_per_forward: of the model alone, median.
        host_ms_per_step: processor time that the stepping thread takes per step, on a CPU without the
        computing, on a GPU without the waiting for it. None: what captured steps do not show. steps: forwards
        of the batch, those of prompts included.
        """
        run = _Run(self.engine)
        with self.engine.observe(run):
            start = time.perf_counter()
            results = self.engine.generate(prompts, **params)
            seconds = time.perf_counter() - start
            run.idle.wait()
        tokens, steps = sum(len(r.token_ids) for r in results), len(run.read)
        times = [at for at, prompts_due in run.read if not prompts_due]
        between = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else seconds
        return {
            "tokens_per_s": tokens / seconds,
            "forwards_per_s": steps / seconds,
            "tokens_per_forward": tokens / sum(r.nfe for r in results),
            "steps": steps,
            "ms_per_step": 1e3 * between,
            "host_ms_per_step": 1e3 * (run.host.seconds - run.apart.seconds) / steps,
            "prompt_tokens_per_s": sum(len(r.prompt_token_ids) for r in results) / seconds,
            **_shares(run, seconds, steps),
        }


def _shares(run: _Run, seconds: float, steps: int) -> dict[str, float | None]:
    names = ("ms_per_forward", "head_and_unmask_share", "scheduler_and_python_share",
             "outside_forward_share")  # fmt: skip
    forwards = run.forward.seconds()
    if len(forwards) < steps:
        return dict.fromkeys(names)
    forward, commit = sum(forwards), sum(run.commit.seconds())
    values = (1e3 * statistics.median(forwards), commit / seconds, 1 - (forward + commit) / seconds,
              1 - forward / seconds)  # fmt: skip
    return dict(zip(names, values, strict=True))


@torch.inference_mode()
def step_times(
    engine: Engine, rows: Iterable[int], prefix: int, seconds: float = 1.0, at_least: int = 3
) -> dict[int, float]:
    """{rows: median seconds} of a denoising step of one block of so many masked positions behind `prefix`
    others, head and unmasking included, measured for `seconds` each.

    rows: at most the engine's block length. The engine must not have served a request yet. Raises ValueError
    if the cache has no room for it.
    """
    runner, scheduler, num_threads = engine._loop._runner, engine._loop._scheduler, engine._loop.num_threads
    before, params = torch.get_num_threads(), SamplingParams(max_new_tokens=max(rows))
    request = Request([1 + i % 64 for i in range(prefix)], params, 0, Transcript(params, (), None))
    scheduler.add(request)
    if not scheduler.can_admit:
        scheduler.waiting.clear()
        raise ValueError(f"the cache has no room for {prefix} + {max(rows)} positions")
    scheduler.admit()
    (sequence,) = scheduler.running
    torch.set_num_threads(num_threads)
    try:
        while sequence.prompt_due:
            plan = scheduler.plan()
            scheduler.begin(plan)
            runner.step(scheduler.lay_out(plan))
            sequence.cached = plan.prompts[0][1][-1].start + plan.prompts[0][1][-1].length

        def step(count: int):
            runner.state.begin_block(sequence.slot, [OPEN] * count)
            runner.step(scheduler.lay_out(Plan()))

        return {count: _median(lambda count=count: step(count), seconds, at_least) for count in rows}
    finally:
        scheduler.fail(sequence, CancelledError())
        torch.set_num_threads(before)


def _median(call, seconds: float, at_least: int) -> float:
    call()
    times, start = [], time.perf_counter()
    while len(times) < at_least or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times)
