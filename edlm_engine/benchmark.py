"""Latencies of an engine under load, for suites of your own:

from edlm_engine import Engine
from edlm_engine.benchmark import measure

with Engine("edlm-tiny") as engine:
    print(measure(engine, ["Q: ...", "Q: ..."], requests=64, concurrency=4, max_new_tokens=64))
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from .progress import progress_bar

if TYPE_CHECKING:
    from .arguments import Prompt, StreamOptions
    from .engine import Engine
    from .outputs import Chunk
    from .params import SamplingParams

TIMES = ("seconds", "first_text_seconds")


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that ended well. Its clock starts right before engine.stream() is called, so that encoding
    the prompt and waiting for a place in the batch count.

    prompt: index of its prompt.
    seconds: until its last chunk was there.
    first_text_seconds: until the first chunk whose text is not empty, the time to first text. It is later
        than the first committed token whenever that is not the first of the text. None: there was no text.
    tokens: generated ones, with the eos.
    nfe: denoising forwards that it took part in.
    """

    prompt: int
    seconds: float
    first_text_seconds: float | None
    tokens: int
    nfe: int


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that raised. prompt: index of its prompt. error: type and message of the exception."""

    prompt: int
    error: str


@dataclass(frozen=True, slots=True)
class Latencies:
    """What measure() found.

    samples: the requests that ended well, in the order in which they were begun; at least one.
    failures: those that raised, in that order. No other number counts them, but for the time they took.
    concurrency: how many requests were under way at a time.
    wall_seconds: from the beginning of the first request to the end of the last one, without the warm-up.
    """

    samples: tuple[Sample, ...]
    failures: tuple[Failure, ...]
    concurrency: int
    wall_seconds: float

    def percentile(self, q: float, of: str = "seconds") -> float:
        """The time that q percent of the requests stay within, in seconds.

        q: 0 to 100. Between two samples it is interpolated linearly, as numpy does by default.
        of: "seconds", the latencies, or "first_text_seconds", of the requests that had text; NaN if none had.
        Raises ValueError for another q or name.
        """
        times = self._times(of)
        return float(np.percentile(times or [math.nan], q))

    @property
    def p50(self) -> float:
        """Median latency in seconds."""
        return self.percentile(50)

    @property
    def p90(self) -> float:
        """The latency in seconds that 90 % of the requests stay within."""
        return self.percentile(90)

    @property
    def p99(self) -> float:
        """The latency in seconds that 99 % of the requests stay within. Below 100 requests it is next to the
        slowest one."""
        return self.percentile(99)

    @property
    def mean(self) -> float:
        """Mean latency in seconds."""
        return float(np.mean(self._times("seconds")))

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all requests per second of wall_seconds."""
        return sum(sample.tokens for sample in self.samples) / self.wall_seconds

    @property
    def requests_per_second(self) -> float:
        """Requests that ended well per second of wall_seconds."""
        return len(self.samples) / self.wall_seconds

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens of all requests over the denoising forwards of all requests, TPF. A forward counts
        once for each request in its batch: batching alone does not raise this number."""
        return sum(sample.tokens for sample in self.samples) / sum(sample.nfe for sample in self.samples)

    def summary(self) -> dict[str, float | int | None]:
        """Flat and ready for JSON: counts, rates, and mean, p50, p90, p99 and max of both times in seconds
        (None instead of NaN)."""
        found: dict[str, float | int | None] = {
            "requests": len(self.samples),
            "failures": len(self.failures),
            "concurrency": self.concurrency,
            "wall_seconds": self.wall_seconds,
            "requests_per_second": self.requests_per_second,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_forward": self.tokens_per_forward,
        }
        for of, prefix in zip(TIMES, ("", "first_text_"), strict=True):
            for name, value in self._statistics(of).items():
                found[prefix + name] = None if math.isnan(value) else value
        return found

    def to_dict(self) -> dict[str, Any]:
        """summary(), with "samples" and "failed" as lists of dicts: ready for JSON."""
        samples, failed = [asdict(sample) for sample in self.samples], [asdict(f) for f in self.failures]
        return {**self.summary(), "samples": samples, "failed": failed}

    def __str__(self) -> str:
        rows = [["ms", *self._statistics("seconds")]]
        for of, label in zip(TIMES, ("latency", "first text"), strict=True):
            rows.append([label, *(f"{1e3 * value:.2f}" for value in self._statistics(of).values())])
        rates = f"{self.requests_per_second:.1f} requests/s, {self.tokens_per_second:.0f} tokens/s"
        lines = [
            f"{len(self.samples)} requests, {self.concurrency} at a time, in {self.wall_seconds:.2f} s: "
            f"{rates}, {self.tokens_per_forward:.2f} tokens per forward",
            *align(rows),
            *(f"{count} failed: {error}" for error, count in self.errors().items()),
        ]
        return "\n".join(lines)

    def errors(self) -> Counter[str]:
        """How often each error came."""
        return Counter(failure.error for failure in self.failures)

    def _times(self, of: str) -> list[float]:
        if of not in TIMES:
            raise ValueError(f"of must be one of {', '.join(TIMES)}, got {of!r}")
        return [value for sample in self.samples if (value := getattr(sample, of)) is not None]

    def _statistics(self, of: str) -> dict[str, float]:
        times = self._times(of)
        percentiles = {f"p{q}": self.percentile(q, of) for q in (50, 90, 99)}
        mean, most = (float(np.mean(times)), max(times)) if times else (math.nan, math.nan)
        return {"mean": mean, **percentiles, "max": most}


def measure(
    engine: Engine,
    prompts: str | Iterable[Prompt],
    params: SamplingParams | None = None,
    *,
    requests: int | None = None,
    concurrency: int = 1,
    warmup: int = 1,
    progress: bool = False,
    **overrides: Unpack[StreamOptions],
) -> Latencies:
    """Stream requests to an engine from `concurrency` threads, each of which begins its next request when its
    last one has ended (a closed loop), and take the time of each.

    prompts: one str, or several prompts as engine.stream() takes them; request i takes prompt i modulo their
        number, and requests begin in this order.
    params, overrides: as of engine.stream(). A seed makes sampled texts the same in every measurement.
    requests: how many are measured, at least `concurrency`; None: every prompt once, or `concurrency` if that
        is more. Towards the end fewer are under way: take several for each thread.
    warmup: requests of each thread that run before the clock starts, and are in no number.
    progress: show a progress bar on a terminal.

    A request that raises becomes one of the failures, and the others go on. Raises ValueError for bad counts
    or no prompts, and what the first request raised if not a single one ended well.
    """
    every = [prompts] if isinstance(prompts, str) else list(prompts)
    total = _checked_requests(requests, every, concurrency, warmup)

    def request(index: int, stop: Event) -> Sample | Exception:
        prompt = index % len(every)
        return _timed(lambda: engine.stream(every[prompt], params, **overrides), prompt, stop)

    _closed_loop(request, warmup * concurrency, concurrency, lambda: None)
    with progress_bar("measuring", total) if progress else nullcontext(lambda: None) as tick:
        start = time.perf_counter()
        outcomes = _closed_loop(request, total, concurrency, tick)
        wall_seconds = time.perf_counter() - start
    samples = tuple(outcome for outcome in outcomes if isinstance(outcome, Sample))
    errors = [(i % len(every), error) for i, error in enumerate(outcomes) if isinstance(error, Exception)]
    if not samples:
        first = errors[0][1]
        first.add_note(f"None of the {total} measured requests ended well; this is the first one's error.")
        raise first
    failures = tuple(Failure(prompt, f"{type(error).__name__}: {error}") for prompt, error in errors)
    return Latencies(samples, failures, concurrency, wall_seconds)


def _checked_requests(requests: int | None, prompts: list[Any], concurrency: int, warmup: int) -> int:
    # this imports torch, which whoever only reads results does without
    from .steps.policies.policy import number

    if not prompts:
        raise ValueError("prompts are empty; at least one is needed")
    number("concurrency", concurrency, 1, integer=True)
    number("warmup", warmup, 0, integer=True)
    if requests is None:
        return max(len(prompts), concurrency)
    number("requests", requests, concurrency, integer=True, hint=f"; concurrency={concurrency} needs as many")
    return requests


def _closed_loop(
    request: Callable[[int, Event], Sample | Exception],
    count: int,
    concurrency: int,
    tick: Callable[[], None],
) -> list[Sample | Exception]:
    """The outcomes of request(0, stop) to request(count - 1, stop), run by so many threads."""
    stop, outcomes = Event(), []
    with ThreadPoolExecutor(concurrency, thread_name_prefix="edlm-measure") as pool:
        try:
            for outcome in pool.map(lambda index: request(index, stop), range(count)):
                outcomes.append(outcome)
                tick()
        finally:  # an interrupt must not leave requests running
            stop.set()
    return outcomes


def _timed(stream: Callable[[], Iterable[Chunk]], prompt: int, stop: Event) -> Sample | Exception:
    start, first_text_seconds, sample = time.perf_counter(), None, None
    try:
        for chunk in stream():
            seconds = time.perf_counter() - start
            if chunk.text and first_text_seconds is None:
                first_text_seconds = seconds
            if (result := chunk.generation) is not None:
                sample = Sample(prompt, seconds, first_text_seconds, len(result.token_ids), result.nfe)
            if stop.is_set():  # leaving the loop closes the stream, which cancels the request
                break
    except Exception as error:
        return error
    return sample or RuntimeError("the stream ended without a result")


def align(rows: list[list[str]]) -> list[str]:
    """The rows of a table as lines, numbers to the right, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
