"""Benchmarks of the ops on one thread, beside torch's way to the same result in the same run.

Times of the ops are the thread's own CPU time, so that other processes on the machine count little; still,
compare medians within one run. Rates are printed beside each and stored with `--benchmark-json`.
"""

import time

import pytest
import torch


def pytest_collection_modifyitems(items):
    for item in items:
        if "measure" in item.fixturenames:
            item.add_marker(pytest.mark.benchmark(timer=time.thread_time, max_time=0.5, min_rounds=5))


@pytest.fixture
def measure(benchmark, request):
    """measure(work, flops=…, bytes_=…): times work(), which does and moves so much, on one thread."""

    def run(work, *, flops: float = 0, bytes_: float = 0) -> None:
        benchmark(work)
        if benchmark.stats is None:  # --benchmark-disable
            return
        median = benchmark.stats.stats.median
        for name, amount in (("gflop_per_s", flops), ("gb_per_s", bytes_)):
            if amount:
                benchmark.extra_info[name] = round(amount / median / 1e9, 1)
        rates = ", ".join(f"{value} {name}" for name, value in benchmark.extra_info.items())
        print(f"\n{benchmark.group} {request.node.name}: {median * 1e6:.1f} µs, {rates}", end="")

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(before)
