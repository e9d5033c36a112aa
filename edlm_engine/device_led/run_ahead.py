"""The device goes on from step to step by itself; the host follows and reads what it has done."""

import time
import warnings
from collections.abc import Callable

import torch

from ..config import DecodingConfig
from ..core.runner import Runner
from ..core.scheduler import Scheduler
from .host_link import HostLink
from .launches import LAUNCH_STEPS, DirectSteps, GraphSteps, LoopSteps
from .static_step import StaticStep

_LAUNCHES = 2  # queued at a time: while the host reads one, the device has the next
_BARREN = 8  # launches without a step after which something must be wrong
_POLL_S = 1e-4


def bucket(sequences: int, most: int) -> int:
    """Slots of the step that serves so many: the next power of two, at most `most`."""
    return min(most, 1 << (sequences - 1).bit_length())


class RunAhead:
    """Runs all sequences of a scheduler, whose prompts are in the cache, until something interrupts.

    ops.advance moves the block state from step to step as the scheduler would. Every step leaves a snapshot
    of it; the scheduler replays them in turn, so that texts, stop strings, streams and errors come about as
    in eager steps, some steps behind. What the host ends by itself (a stop string, a cancelled request) it
    tells the device, which meanwhile may do steps that nobody reads.
    stepping: "direct" (no graph, any device), "graph" or "device": see launches.py.
    """

    def __init__(self, stepping: str, scheduler: Scheduler, runner: Runner, decoding: DecodingConfig):
        self.stepping = stepping
        self._scheduler, self._runner, self._decoding = scheduler, runner, decoding
        self._link = HostLink(runner.state, ring_size=(_LAUNCHES + 1) * LAUNCH_STEPS)
        self._ways: dict[int, tuple] = {}  # by batch: the step, and the way to run it
        self._pool = None if stepping == "direct" else torch.cuda.graph_pool_handle()

    def run(self, interrupted: Callable[[], bool]):
        """Until no sequence runs, or interrupted(), which is asked between two steps."""
        scheduler, link = self._scheduler, self._link
        step, way = self._way(max(sequence.slot for sequence in scheduler.running) + 1)
        link.reset()
        self._runner.state.upload()
        step.lay_out()
        try:
            self._follow(way, interrupted)
        finally:
            link.pause()
            way.wait()
            self._replay()
            self._take_over()

    def _take_over(self):
        """Let the host lead again, from where the device has come to."""
        state, running = self._runner.state, {sequence.slot for sequence in self._scheduler.running}
        state.download()
        for slot in range(len(state.records)):
            if slot not in running:  # what ended meanwhile may still be active there
                state.host.active[slot] = 0

    def _follow(self, way, interrupted: Callable[[], bool]):
        barren = 0
        while True:
            # Asked first: of what has ended all is read afterwards, so that the ring has room.
            free = _LAUNCHES - way.pending()
            replayed = self._replay()
            if not self._scheduler.running or interrupted():
                return
            barren = 0 if replayed else barren + free
            if barren > _BARREN:
                raise RuntimeError("the device does no steps though sequences run: their states differ")
            for _ in range(free):
                way.launch()
            if not (free or replayed):
                time.sleep(_POLL_S)

    def _replay(self) -> int:
        """Let the scheduler follow the steps that the host has not seen; how many they were."""
        scheduler, link, count = self._scheduler, self._link, 0
        while (snapshot := link.next()) is not None:
            before = {sequence.slot for sequence in scheduler.running}
            state = self._runner.state
            state.load_snapshot(snapshot)
            scheduler.read([s for s in scheduler.running if state.host.active[s.slot]])
            scheduler.drop_ended()
            for slot in before - {sequence.slot for sequence in scheduler.running}:
                link.stop(slot)
            count += 1
        return count

    def _way(self, sequences: int):
        """The step for so many slots, and the way to run it; made when first asked for."""
        batch = bucket(sequences, len(self._runner.state.records))
        if batch not in self._ways:
            step = StaticStep(self._runner, self._decoding, self._link, batch)
            self._ways[batch] = step, self._make_way(step)
        return self._ways[batch]

    def _make_way(self, step: StaticStep):
        if self.stepping == "direct":
            return DirectSteps(step, self._link)
        state, active = self._runner.state, self._runner.state.host.active.copy()
        state.host.active[:] = 0  # a step is captured while it has nothing to do
        state.upload()
        step.lay_out()
        state.host.active[:] = active
        if self.stepping == "device":
            try:
                return LoopSteps(step, self._runner, self._pool, self._link)
            except RuntimeError as error:
                warnings.warn(f"no loop on the GPU, one graph per step instead: {error}", stacklevel=2)
                self.stepping = "graph"
        return GraphSteps(step, self._runner, self._pool)
