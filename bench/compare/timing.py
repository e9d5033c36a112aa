"""How a module of this folder measures, and how it tells run.py."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable


def median_ms(call: Callable[[], object], at_least: int = 5, seconds: float = 2.0) -> float:
    """Median wall time of a call in milliseconds, after one to warm up."""
    call()
    times, start = [], time.perf_counter()
    while len(times) < at_least or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - before))
    return statistics.median(times)


def answer(measure: Callable[[dict], dict]) -> None:
    """Run measure(job) for the job in the last argument; its result is the last line printed."""
    print("\n" + json.dumps(measure(json.loads(sys.argv[-1]))), flush=True)
