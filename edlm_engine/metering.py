"""Times of an engine's steps, taken from inside."""

import statistics
import time
from collections.abc import Iterable

import torch

from .engine import Engine
from .forward import QueryBlock
from .layout import ForwardBuilder, add_active_block
from .params import SamplingParams


class Meter:
    """Times an engine's forwards: `forward` is the model alone, `step` adds head and unmask.

    times: seconds of each call so far. On a GPU a call that does not wait for its work looks short.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.times: dict[str, list[float]] = {"forward": [], "step": []}
        runner = engine._loop._runner
        runner.model.forward = self._timed("forward", runner.model.forward)
        runner.step = self._timed("step", runner.step)

    def _timed(self, name: str, call):
        def timed(*arguments):
            start = time.perf_counter()
            result = call(*arguments)
            self.times[name].append(time.perf_counter() - start)
            return result

        return timed

    def run(self, prompts, **params) -> dict[str, float]:
        """All prompts in one batch, to the end: rates, and shares of the time."""
        for times in self.times.values():
            times.clear()
        start = time.perf_counter()
        results = self.engine.generate(prompts, **params)
        seconds = time.perf_counter() - start
        forward, step, forwards = sum(self.times["forward"]), sum(self.times["step"]), len(self.times["step"])
        tokens, nfe = sum(len(r.token_ids) for r in results), sum(r.nfe for r in results)
        return {
            "tokens_per_s": tokens / seconds,
            "forwards_per_s": forwards / seconds,
            "tokens_per_forward": tokens / nfe,
            "ms_per_forward": 1e3 * statistics.median(self.times["forward"]),
            "prompt_tokens_per_s": sum(len(r.prompt_token_ids) for r in results) / seconds,
            "head_and_unmask_share": (step - forward) / seconds,
            "scheduler_and_python_share": 1 - step / seconds,
            "outside_forward_share": 1 - forward / seconds,
        }


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
