"""pytest fixtures for latency suites; pytest loads them wherever the package is installed.

    def test_latency(edlm_latency):
        latencies = edlm_latency(["Q: ...", "Q: ..."], requests=32, concurrency=4, max_new_tokens=64)
        assert latencies.p90 < 0.5

`edlm_engine` is the engine that is measured, `edlm_engine_options` its keyword arguments: override one in a
conftest.py for another engine, or with params= for several. Where pytest-benchmark is installed, every
request is a round of the test's benchmark: its table, --benchmark-save and --benchmark-compare are about
latencies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # importing torch takes a second or two, which other people's sessions must not pay
    from .benchmark import Latencies
    from .engine import Engine

PROPERTY = "edlm_latency"  # of a test's report, by which results also leave the processes of pytest-xdist
COLUMNS = {
    "p50 ms": "p50",
    "p90 ms": "p90",
    "p99 ms": "p99",
    "first text p50 ms": "first_text_p50",
    "tokens/s": "tokens_per_second",
    "TPF": "tokens_per_forward",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edlm_engine", "latencies of block-diffusion language models")
    group.addoption(
        "--edlm-model",
        default="edlm-tiny",
        metavar="MODEL",
        help="what the fixture edlm_engine loads: checkpoint folder, bundled name or hub id (edlm-tiny)",
    )


@pytest.fixture(scope="session")
def edlm_engine_options() -> dict[str, Any]:
    """Keyword arguments of the engine: none, unless a suite overrides this fixture."""
    return {}


@pytest.fixture(scope="session")
def edlm_engine(pytestconfig: pytest.Config, edlm_engine_options: dict[str, Any]) -> Iterator[Engine]:
    """An Engine of --edlm-model with edlm_engine_options, one for the whole session."""
    from .engine import Engine

    with Engine(pytestconfig.getoption("edlm_model"), **edlm_engine_options) as engine:
        yield engine


@pytest.fixture
def edlm_latency(request: pytest.FixtureRequest, edlm_engine: Engine) -> Callable[..., Latencies]:
    """measure() of edlm_engine.benchmark with the fixture edlm_engine: edlm_latency(prompts, requests=…,
    concurrency=…, warmup=…, **params) returns Latencies.

    Every measurement is a row of the table at the end of the session, and a property "edlm_latency" of the
    test's report. pytest-benchmark keeps the first one of a test: its summary() as extra_info, and the
    latencies as rounds unless the test asks for the fixture `benchmark` itself. OPS are then one over the
    mean latency, whatever the concurrency; extra_info has requests_per_second.
    """
    from .benchmark import measure

    def run(prompts: str | Iterable[Any], *args: Any, **options: Any) -> Latencies:
        latencies = measure(edlm_engine, prompts, *args, **options)
        summary = latencies.summary()
        request.node.user_properties.append((PROPERTY, {**summary, "errors": dict(latencies.errors())}))
        if _benchmarks(request.node):
            benchmark = request.getfixturevalue("benchmark")
            if not benchmark.extra_info.keys() & summary.keys():
                benchmark.extra_info.update(summary)
                if timer := request.node.stash.get(TIMER, None):
                    timer.replay(benchmark, [sample.seconds for sample in latencies.samples])
        return latencies

    return run


class ReplayTimer:
    """A timer of pytest-benchmark that tells given durations, one a round."""

    __name__ = "latency of a request"  # what --benchmark-json says of it

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def __call__(self) -> float:
        reading = next(self._readings, None)
        return time.perf_counter() if reading is None else reading

    def replay(self, benchmark: Any, durations: list[float]) -> None:
        self._readings = iter([reading for duration in durations for reading in (0.0, duration)])
        benchmark.pedantic(lambda: None, rounds=len(durations))


TIMER = pytest.StashKey[ReplayTimer]()


def _benchmarks(item: pytest.Item) -> bool:
    return "benchmark" in getattr(item, "fixturenames", ()) and item.config.pluginmanager.hasplugin(
        "benchmark"
    )


@pytest.hookimpl(
    tryfirst=True
)  # pytest-benchmark then takes these tests for benchmarks, as --benchmark-only asks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        return
    for item in items:
        names = getattr(item, "fixturenames", [])
        if "edlm_latency" not in names or "benchmark" in names:
            continue
        item.fixturenames = [*names, "benchmark"]  # type: ignore[attr-defined]
        item.stash[TIMER] = ReplayTimer()
        own = item.get_closest_marker("benchmark")
        options = {**(own.kwargs if own else {}), "timer": item.stash[TIMER]}
        item.add_marker(pytest.mark.benchmark(**options), append=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    measured = [
        (report.nodeid, value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if not measured:
        return
    from .benchmark import align

    terminalreporter.section("edlm_engine: latencies")
    rows = [["test", "requests", "at a time", *COLUMNS]]
    for test, value in measured:
        rows.append([test, str(value["requests"]), str(value["concurrency"])])
        for title, key in COLUMNS.items():
            number = value[key]
            scale = 1e3 if title.endswith("ms") else 1
            rows[-1].append("-" if number is None else f"{scale * number:.2f}")
    for line in align(rows):
        terminalreporter.write_line(line)
    for test, value in measured:
        for error, count in value["errors"].items():
            terminalreporter.write_line(f"{test}: {count} failed: {error}", red=True)
