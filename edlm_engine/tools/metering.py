"""Times of an engine's steps, taken from inside."""

import statistics
import threading
import time
from collections.abc import Callable, Iterable

import torch

from ..core.scheduler import Scheduler
from ..engine import Engine
from ..params import SamplingParams
from ..steps.inputs import QueryBlock
from ..steps.layout import ForwardBuilder, add_active_block


class Spans:
    """Durations of calls: on a CPU by the clock, on a GPU between events that go with the work."""

    def __init__(self, on_gpu: bool):
        self._on_gpu = on_gpu
        self._pairs: list[tuple] = []

    def clear(self):
        self._pairs.clear()

    def around(self, call: Callable) -> Callable:
        def timed(*arguments):
            if self._on_gpu and torch.cuda.is_current_stream_capturing():
                return call(*arguments)  # nothing is done yet, and replays do not come by here
            begin = self._now()
            result = call(*arguments)
            self._pairs.append((begin, self._now()))
            return result

        return timed

    def _now(self):
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> list[float]:
        """Of each call; its work must be done."""
        if self._on_gpu:
            return [begin.elapsed_time(end) / 1e3 for begin, end in self._pairs]
        return [end - begin for begin, end in self._pairs]


class CpuTime:
    """What calls cost the threads that make them, in seconds of their processors: sleeping costs nothing."""

    def __init__(self):
        self.seconds = 0.0
        self._idle = threading.Event()
        self._idle.set()

    def around(self, call: Callable) -> Callable:
        def timed(*arguments):
            self._idle.clear()
            begin = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.thread_time() - begin
                self._idle.set()

        return timed

    def wait(self):
        """Until the call under way has ended."""
        self._idle.wait()


class Meter:
    """Times an engine's steps, whoever leads them: on a CPU all of them; on a GPU those that the host lays
    out. Of captured ones it sees when the host has read them. An engine has one Meter, which it does not
    keep alive."""

    def __init__(self, engine: Engine):
        self.engine = engine
        loop, on_gpu = engine._loop, engine.device == "cuda"
        runner, scheduler = loop._runner, loop._scheduler
        self._forwards, self._computes = Spans(on_gpu), Spans(on_gpu)
        self._read: list[tuple[float, bool]] = []  # when the scheduler came to a step; prompts were due still
        self._host, self._apart = CpuTime(), CpuTime()
        runner.model.forward = self._forwards.around(runner.model.forward)
        runner.compute = self._computes.around(runner.compute)
        scheduler.advance = _noted(self._read, scheduler)
        loop._step = self._host.around(loop._step)
        if on_gpu:  # there the host waits actively, here it computes
            runner.state.download = self._apart.around(runner.state.download)
        else:
            runner.compute = self._apart.around(runner.compute)

    def run(self, prompts, **params) -> dict[str, float | None]:
        """All prompts in one batch, to the end: rates, times and shares of the time.

        ms_per_step: from one step to the next, all included, once the prompts are in the cache.
        ms_per_forward: of the model alone, median.
        host_ms_per_step: processor time that the stepping thread takes per step, on a CPU without the
        computing, on a GPU without the waiting for it. None: what captured steps do not show. steps: forwards
        of the batch, those of prompts included.
        """
        self._clear()
        start = time.perf_counter()
        results = self.engine.generate(prompts, **params)
        seconds = time.perf_counter() - start
        self._host.wait()
        tokens, steps = sum(len(r.token_ids) for r in results), len(self._read)
        times = [at for at, prompts_due in self._read if not prompts_due]
        between = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else seconds
        return {
            "tokens_per_s": tokens / seconds,
            "forwards_per_s": steps / seconds,
            "tokens_per_forward": tokens / sum(r.nfe for r in results),
            "steps": steps,
            "ms_per_step": 1e3 * between,
            "host_ms_per_step": 1e3 * (self._host.seconds - self._apart.seconds) / steps,
            "prompt_tokens_per_s": sum(len(r.prompt_token_ids) for r in results) / seconds,
            **self._shares(seconds, steps),
        }

    def _clear(self):
        self._forwards.clear()
        self._computes.clear()
        self._read.clear()
        self._host.seconds = self._apart.seconds = 0.0

    def _shares(self, seconds: float, steps: int) -> dict[str, float | None]:
        names = ("ms_per_forward", "head_and_unmask_share", "scheduler_and_python_share",
                 "outside_forward_share")  # fmt: skip
        forwards = self._forwards.seconds()
        if len(forwards) < steps:
            return dict.fromkeys(names)
        forward, compute = sum(forwards), sum(self._computes.seconds())
        values = (1e3 * statistics.median(forwards), (compute - forward) / seconds, 1 - compute / seconds,
                  1 - forward / seconds)  # fmt: skip
        return dict(zip(names, values, strict=True))


def _noted(read: list[tuple[float, bool]], scheduler: Scheduler) -> Callable[[], None]:
    advance = scheduler.advance

    def noted():
        read.append((time.perf_counter(), scheduler.prompts_due))  # first: what follows may wake who asks
        advance()

    return noted


@torch.inference_mode()
def step_times(
    engine: Engine, rows: Iterable[int], prefix: int, seconds: float = 1.0, at_least: int = 3
) -> dict[int, float]:
    """{rows: median seconds} of a denoising step of one block of so many masked positions behind `prefix`
    others, head and unmasking included, measured for `seconds` each.

    rows: at most the engine's block length. The engine must not have served a request yet. Raises ValueError
    if the cache has no room for it.
    """
    runner, num_threads = engine._loop._runner, engine._loop.num_threads
    cache, state, before = runner.cache, runner.state, torch.get_num_threads()
    slot = cache.reserve(prefix + max(rows))
    if slot is None:
        raise ValueError(f"the cache has no room for {prefix} + {max(rows)} positions")
    torch.set_num_threads(num_threads)
    try:
        builder = ForwardBuilder(len(state.step))
        builder.add(QueryBlock(slot, 0, prefix, prefix), [1 + i % 64 for i in range(prefix)])
        runner.step(builder.build(state.tokens.device))

        def step(count: int):
            state.begin_request(slot, SamplingParams(), 0)
            state.begin_block(slot, count)
            builder = ForwardBuilder(len(state.step))
            add_active_block(builder, state, slot, prefix, 1, shift=False, fresh=False)
            runner.step(builder.build(state.tokens.device))

        return {count: _median(lambda count=count: step(count), seconds, at_least) for count in rows}
    finally:
        cache.release(slot)
        torch.set_num_threads(before)


def _median(call, seconds: float, at_least: int) -> float:
    call()
    times, start = [], time.perf_counter()
    while len(times) < at_least or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times)
