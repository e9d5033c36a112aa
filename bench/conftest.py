"""Benchmarks of the ops on one thread, beside torch's way to the same result in the same run.

Two-thread timings of single ops say little on a small shared machine; compare medians within one run. Extra
columns (`--benchmark-json`) hold GFLOP/s or GB/s computed from the median.
"""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def measure(benchmark, request):
    """measure(work, flops=…, bytes_=…, seconds=…): times work() for about that long and prints the rate."""

    def run(work, *, flops: float = 0, bytes_: float = 0, seconds: float = 0.5) -> None:
        benchmark._max_time = seconds
        benchmark._min_rounds = 3
        benchmark(work)
        if benchmark.stats is None:  # --benchmark-disable
            return
        median = benchmark.stats.stats.median
        if flops:
            benchmark.extra_info["gflops"] = round(flops / median / 1e9, 1)
        if bytes_:
            benchmark.extra_info["gb_per_s"] = round(bytes_ / median / 1e9, 1)
        rate = ", ".join(f"{value} {name}" for name, value in benchmark.extra_info.items())
        print(f"\n{request.node.name}: {median * 1e6:.1f} µs {rate}", end="")

    return run
