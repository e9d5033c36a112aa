"""edlm_engine.benchmark: what each number is, on a clock that the test moves; load, failures, interrupts."""

import json
import math
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import write_checkpoint
from engine_tools import eventually, idle

from edlm_engine import Engine
from edlm_engine.benchmark import Failure, Latencies, Sample, measure

pytestmark = pytest.mark.timeout(60)


def chunk(text="", tokens=0, nfe=0):
    result = SimpleNamespace(token_ids=[0] * tokens, nfe=nfe) if tokens else None
    return SimpleNamespace(text=text, generation=result)


class Clock:
    """Stands for the module `time` of the benchmark."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("edlm_engine.benchmark.time", self)

    def perf_counter(self):
        return self.now


class Timetable:
    """An engine for one request at a time: prompt (wait, steps) streams a chunk after each number of seconds;
    the third has the first text, the last the result. A prompt of another kind is raised."""

    def __init__(self, clock):
        self.clock, self.seen = clock, []

    def stream(self, prompt, params=None, **overrides):
        self.seen.append((prompt, params, overrides))
        if isinstance(prompt, Exception):
            self.clock.now += 50
            raise prompt
        return self.chunks(*prompt)

    def chunks(self, *steps):
        for i, seconds in enumerate(steps, 1):
            self.clock.now += seconds
            last = i == len(steps)
            yield chunk("text" if i > 2 else "", tokens=10 * i if last else 0, nfe=i)
            self.clock.now += 0.125  # what the consumer takes between two chunks


def test_clock_of_a_request(monkeypatch):
    clock = Clock(monkeypatch)
    prompts = [(1, 2, 4, 8), (1, 1), (3, 3, 3)]
    engine = Timetable(clock)
    found = measure(engine, prompts, warmup=2)
    assert found.samples == (
        Sample(prompt=0, seconds=15 + 3 * 0.125, first_text_seconds=7 + 2 * 0.125, tokens=40, nfe=4),
        Sample(prompt=1, seconds=2.125, first_text_seconds=None, tokens=20, nfe=2),
        Sample(prompt=2, seconds=9.25, first_text_seconds=9.25, tokens=30, nfe=3),
    )
    assert found.failures == ()
    assert found.wall_seconds == 15 + 2 + 9 + 9 * 0.125
    assert found.tokens_per_second == 90 / found.wall_seconds
    assert found.requests_per_second == 3 / found.wall_seconds
    assert found.tokens_per_forward == 90 / 9
    warm, measured = engine.seen[:2], engine.seen[2:]
    assert [prompt for prompt, *_ in warm] == prompts[:2]
    assert [prompt for prompt, *_ in measured] == prompts


def test_failures_are_counted_and_take_their_time(monkeypatch):
    clock = Clock(monkeypatch)
    bad = ValueError("no such thing")
    found = measure(Timetable(clock), [bad, (1, 1), bad, OSError("gone")], requests=7, warmup=0)
    assert [sample.prompt for sample in found.samples] == [1, 1]
    wrong = "ValueError: no such thing"
    assert found.failures == (
        Failure(0, wrong), Failure(2, wrong), Failure(3, "OSError: gone"),
        Failure(0, wrong), Failure(2, wrong),
    )  # fmt: skip
    assert found.errors() == {wrong: 4, "OSError: gone": 1}
    assert found.wall_seconds == 5 * 50 + 2 * 2.25
    assert found.requests_per_second == 2 / found.wall_seconds
    assert str(found).endswith("4 failed: ValueError: no such thing\n1 failed: OSError: gone")


def test_a_stream_without_a_result_is_a_failure(monkeypatch):
    engine = SimpleNamespace(stream=lambda prompt, *_: iter([chunk("a"), chunk("ab", tokens=prompt, nfe=1)]))
    found = measure(engine, [0, 5])
    assert [s.tokens for s in found.samples] == [5]
    assert found.failures == (Failure(0, "RuntimeError: the stream ended without a result"),)


def test_no_request_ends_well(monkeypatch):
    errors = [ValueError("first"), ValueError("second")]
    with pytest.raises(ValueError, match="first") as info:
        measure(Timetable(Clock(monkeypatch)), errors, requests=4)
    assert info.value.__notes__ == [
        "None of the 4 measured requests ended well; this is the first one's error."
    ]


def test_parameters_reach_every_request(monkeypatch):
    engine, params = Timetable(Clock(monkeypatch)), object()
    measure(engine, [(1, 1)], params, requests=3, seed=7, max_new_tokens=5)
    assert engine.seen == [((1, 1), params, {"seed": 7, "max_new_tokens": 5})] * 4


def latencies(seconds, first=None, **changes):
    first = first or [None] * len(seconds)
    samples = tuple(Sample(0, s, f, 8, 2) for s, f in zip(seconds, first, strict=True))
    return Latencies(**{"samples": samples, "failures": (), "concurrency": 1, "wall_seconds": 2.0} | changes)


def test_percentiles_interpolate_linearly():
    seconds = np.random.default_rng(0).permutation(np.arange(1.0, 12.0)).tolist()
    found = latencies(seconds, [s / 8 if s > 3 else None for s in seconds])
    assert [found.percentile(q) for q in (0, 25, 100)] == [1.0, 3.5, 11.0]
    assert (found.p50, found.p90, found.p99, found.mean) == pytest.approx((6.0, 10.0, 10.9, 6.0))
    assert found.percentile(50, "first_text_seconds") == 7.5 / 8  # of 4 … 11 eighths
    assert found.percentile(99.5) == pytest.approx(np.percentile(seconds, 99.5))
    assert latencies([0.25]).p99 == 0.25
    assert math.isnan(latencies([0.25]).percentile(50, "first_text_seconds"))
    with pytest.raises(ValueError, match="must be one of seconds, first_text_seconds, got 'tokens'"):
        found.percentile(50, "tokens")
    with pytest.raises(ValueError, match="range"):
        found.percentile(101)


def test_summary_is_flat_and_json():
    found = latencies([1.0, 3.0], [0.5, None], failures=(Failure(3, "E: no"),), concurrency=2)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told.pop("samples") == [
        {"prompt": 0, "seconds": 1.0, "first_text_seconds": 0.5, "tokens": 8, "nfe": 2},
        {"prompt": 0, "seconds": 3.0, "first_text_seconds": None, "tokens": 8, "nfe": 2},
    ]
    assert told.pop("failed") == [{"prompt": 3, "error": "E: no"}]
    assert told == found.summary()
    assert told == pytest.approx(
        {
            "requests": 2, "failures": 1, "concurrency": 2, "wall_seconds": 2.0,
            "requests_per_second": 1.0, "tokens_per_second": 8.0, "tokens_per_forward": 4.0,
            "mean": 2.0, "p50": 2.0, "p90": 2.8, "p99": 2.98, "max": 3.0,
            "first_text_mean": 0.5, "first_text_p50": 0.5, "first_text_p90": 0.5, "first_text_p99": 0.5,
            "first_text_max": 0.5,
        }
    )  # fmt: skip
    silent = json.loads(json.dumps(latencies([1.0]).summary(), allow_nan=False))
    assert silent["first_text_p50"] is None and silent["first_text_max"] is None


def test_table():
    assert str(latencies([0.001, 0.003], [0.0005, None], concurrency=4)).splitlines() == [
        "2 requests, 4 at a time, in 2.00 s: 1.0 requests/s, 8 tokens/s, 4.00 tokens per forward",
        "ms          mean   p50   p90   p99   max",
        "latency     2.00  2.00  2.80  2.98  3.00",
        "first text  0.50  0.50  0.50  0.50  0.50",
    ]


class Crowd:
    """An engine whose streams wait until `party` of them are under way."""

    def __init__(self, party):
        self.barrier, self.lock = threading.Barrier(party), threading.Lock()
        self.begun, self.active, self.most, self.on_chunk = [], 0, 0, lambda: None

    def stream(self, prompt, params=None):
        with self.lock:
            self.begun.append(prompt)
            self.active += 1
            self.most = max(self.most, self.active)
        try:
            self.barrier.wait(20)
            yield chunk("text")
            yield chunk("text", tokens=1, nfe=1)
        finally:
            with self.lock:
                self.active -= 1


def test_so_many_requests_at_a_time_and_no_more():
    engine = Crowd(3)
    found = measure(engine, range(4), requests=9, concurrency=3, warmup=2)
    assert engine.most == 3 and engine.active == 0
    assert len(engine.begun) == 2 * 3 + 9
    assert [sample.prompt for sample in found.samples] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert found.concurrency == 3 and not found.failures
    assert (
        len(measure(Crowd(6), range(4), concurrency=6, warmup=0).samples) == 6
    )  # enough to be six at a time


def test_an_interrupt_ends_what_is_under_way():
    running, begun, closed = threading.Event(), [], []

    def stream(prompt, *_):
        if prompt == "interrupt":
            running.wait(20)
            raise KeyboardInterrupt
        begun.append(prompt)
        try:
            while True:
                running.set()
                yield chunk("text")
                time.sleep(0.001)
        finally:
            closed.append(prompt)

    with pytest.raises(KeyboardInterrupt):
        measure(SimpleNamespace(stream=stream), ["interrupt", *"abcde"], concurrency=2, warmup=0)
    assert sorted(closed) == begun  # before measure() came back
    assert len(begun) <= 2  # what ran, and what the interrupted thread may have taken up


def test_progress_counts_measured_requests(monkeypatch):
    told = []

    @contextmanager
    def progress_bar(description, total):
        told.append(total)
        yield lambda: told.append("tick")

    monkeypatch.setattr("edlm_engine.benchmark.progress_bar", progress_bar)
    engine = Timetable(Clock(monkeypatch))
    measure(engine, [(1, 1)], requests=2, warmup=3)
    assert told == []
    measure(engine, [(1, 1)], requests=2, warmup=3, progress=True)
    assert told == [2, "tick", "tick"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "prompts are empty; at least one is needed"),
        ({"concurrency": 0}, r"concurrency must be in \[1, inf\), got 0"),
        ({"concurrency": 1.5}, "concurrency must be an integer, got 1.5"),
        ({"concurrency": "2"}, "concurrency must be an integer, got '2'"),
        ({"warmup": -1}, r"warmup must be in \[0, inf\), got -1"),
        ({"requests": 0}, r"requests must be in \[1, inf\), got 0"),
        (
            {"requests": 2, "concurrency": 3},
            r"requests must be in \[3, inf\), got 2; concurrency=3 needs as many",
        ),
    ],
)
def test_bad_counts(options, message):
    with pytest.raises(ValueError, match=message):
        measure(None, **{"prompts": ["a"]} | options)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with Engine(write_checkpoint(tmp_path_factory.mktemp("benchmark") / "model"), dtype="float32") as engine:
        yield engine


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_engine(engine, concurrency):
    prompts = ["w1 w2 w3", "w4", [5, 6, 7]]
    params = {"max_new_tokens": 24, "temperature": 1.0, "seed": 3}
    found = measure(engine, prompts, requests=9, concurrency=concurrency, **params)
    results = [engine.generate(prompt, **params) for prompt in prompts] * 3
    assert [(s.tokens, s.nfe) for s in found.samples] == [(len(r.token_ids), r.nfe) for r in results]
    assert found.tokens_per_forward == sum(len(r.token_ids) for r in results) / sum(r.nfe for r in results)
    assert all(0 < s.first_text_seconds <= s.seconds <= found.wall_seconds for s in found.samples)
    eventually(lambda: idle(engine))


def test_one_string_is_one_prompt(engine):
    assert len(measure(engine, "w1 w2 w3", max_new_tokens=4).samples) == 1


def test_bad_parameters_are_raised_and_bad_prompts_counted(engine):
    with pytest.raises(TypeError, match="unknown sampling parameter 'max_tokens'"):
        measure(engine, ["w1"], max_tokens=4)
    found = measure(engine, ["w1", [10**6]], concurrency=2, max_new_tokens=4)
    (failure,) = found.failures
    assert failure.prompt == 1 and failure.error.startswith("ValueError: prompt[0] is 1000000, outside")
