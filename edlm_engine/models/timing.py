"""Which of two layers is faster on this GPU."""

import math
from collections.abc import Callable
from statistics import median

import torch

ROWS = (8, 32, 64)  # of denoising steps: a block of one sequence or two, with the commit of the one before
WIN = 0.9  # of cuBLAS's time: what a run gains less is noise
_RUNS, _WARMUP = 15, 3
_FLUSH_BYTES = 256 << 20  # more than the second-level cache of any GPU


def packed_wins(packed: list[float], dense: list[float]) -> bool:
    """From the times of both layers at each of ROWS, in any unit: the packed one takes at least 10 % less in
    the geometric mean and never more."""
    ratios = [ours / theirs for ours, theirs in zip(packed, dense, strict=True)]
    return max(ratios) <= 1 and math.prod(ratios) <= WIN ** len(ratios)


def time_on_gpu(layer: Callable, weight: torch.Tensor) -> list[float]:
    """Median milliseconds of layer(x, out) at each of ROWS, the weight coming from memory."""
    times = []
    for rows in ROWS:
        x = torch.ones(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
        out = torch.empty(rows, weight.shape[0], dtype=weight.dtype, device=weight.device)
        times.append(cold_ms(lambda x=x, out=out: layer(x, out), weight.device))
    return times


def cold_ms(work: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of the work on the GPU, with nothing in its caches: something larger is written
    before each run, which also lets the host get ahead of the GPU."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
    runs = []
    for _ in range(_RUNS + _WARMUP):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        work()
        end.record()
        runs.append((start, end))
    torch.cuda.synchronize(device)
    return median(start.elapsed_time(end) for start, end in runs[_WARMUP:])
