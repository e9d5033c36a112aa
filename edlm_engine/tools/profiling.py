"""What a generation does on the GPU, from torch's profiler: gaps between kernels, waits, launches."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ..engine import Engine

_MARK = "edlm: generation"
_WAITS = {
    "cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy",
    "cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize",
}  # fmt: skip
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")
_COPIES = ("Memcpy", "Memset")


class Activity(NamedTuple):
    """A call on the host, or work on the GPU; times in µs."""

    name: str
    on_gpu: bool
    begin: float
    end: float


class _Steps:
    """Observes an engine, and counts the steps that are read."""

    count = 0

    def begin(self, moment: str):
        self.count += moment == "read"

    def end(self, moment: str):
        """Nothing to note."""


def gpu_activity(engine: Engine, prompts, params: dict) -> dict[str, float | None]:
    """summary() of one generation, which the profiler slows down: its shares are worth more than its times.

    prompts, params: as for engine.generate().
    """
    wanted = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        wanted.append(ProfilerActivity.CUDA)
    with profile(activities=wanted) as profiler, engine.observe(_Steps()) as steps, record_function(_MARK):
        results = engine.generate(prompts, **params)
    block = params.get("block_length") or engine.decoding.block_length
    blocks = math.ceil(max(len(result.token_ids) for result in results) / block)
    activities = [
        Activity(e.name, e.device_type != DeviceType.CPU, e.time_range.start, e.time_range.end)
        for e in profiler.events()
    ]
    return summary(activities, steps.count, blocks)


def summary(activities: Iterable[Activity], steps: int, blocks: int) -> dict[str, float | None]:
    """synchronisations_per_block: calls in which the host waits for the GPU; launches_per_step: of kernels
    and graphs, by the host; kernels_per_step; gpu_ms_per_step: in which the GPU computes or copies, for the
    prompt, too; outside_kernels_share: of the time from its first work to its last, that in which it does
    neither. The profiler makes launches slower: gpu_ms_per_step beside the time per step without it tells
    more.

    activities: of the whole profile, with the mark around the generation. The last three are None where the
    profiler saw no kernels but those before the steps: it does not look into every kind of graph.
    """
    activities = list(activities)
    begin, end = next((a.begin, a.end) for a in activities if a.name == _MARK and not a.on_gpu)
    within = [a for a in activities if begin <= a.begin < end and a.name != _MARK]
    host = [a.name for a in within if not a.on_gpu]
    work = sorted((a.begin, a.end) for a in within if a.on_gpu)
    kernels = [a.begin for a in within if a.on_gpu and not a.name.startswith(_COPIES)]
    later = sum(kernel > (begin + end) / 2 for kernel in kernels)
    found = dict.fromkeys(("kernels_per_step", "gpu_ms_per_step", "outside_kernels_share"))
    if later >= steps / 2:
        busy, whole = _covered(work), max(end for _, end in work) - work[0][0]
        found = dict(zip(found, (len(kernels) / steps, busy / 1e3 / steps, 1 - busy / whole), strict=True))
    return {
        "synchronisations_per_block": sum(name in _WAITS for name in host) / blocks,
        "launches_per_step": sum(name.startswith(_LAUNCHES) for name in host) / steps,
        **found,
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans, which are in order of their begin."""
    total, reached = 0.0, -math.inf
    for begin, end in spans:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
