"""How the scripts of this folder time calls, keep results and stay within their time."""

from __future__ import annotations

import json
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch


class OutOfTime(BaseException):
    """Not an Exception: no library that is interrupted takes it for a reason to go another way."""


@contextmanager
def time_limit(seconds: float):
    """Raises OutOfTime in the main thread when the time is over."""

    def stop(*_):
        raise OutOfTime(f"longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Stopwatch:
    """Times calls, on a GPU as a captured graph between two events; in a dry run on the CPU by the clock."""

    def __init__(self, dry_run: bool):
        self.dry_run, self.device = dry_run, "cpu" if dry_run else "cuda"

    def name(self) -> str:
        return "cpu, dry run" if self.dry_run else torch.cuda.get_device_name()

    def seconds(self, calls: list[Callable], replays: int = 15) -> float:
        """Median time of one call, without the time of its launches."""
        for call in calls:  # warm-up, and compilation
            call()
        if self.dry_run:
            start = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - start) / len(calls)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        taken = []
        for _ in range(replays + 3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) / 1e3 / len(calls))
        return statistics.median(taken[3:])

    def copy_bandwidth(self) -> float:
        """Bytes per second of a large copy on the device, every byte counted twice: read and written."""
        size = 1 << (20 if self.dry_run else 30)
        source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self.seconds([lambda: target.copy_(source)])


def save(path: str | Path, document: dict) -> None:
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)
