"""Ways to run a StaticStep over and over: here step by step, as a CUDA graph, or in a loop on the GPU."""

from collections import deque

import torch

from ..core.runner import Runner
from ..models.cublaslt import searching
from .device_loop import DeviceLoop
from .host_link import HostLink
from .static_step import StaticStep

LAUNCH_STEPS = 64  # of one launch of a loop, at most


class DirectSteps:
    """A launch runs the steps at once, as DeviceLoop does on a GPU: while control says so."""

    launch_steps = 4

    def __init__(self, step: StaticStep, link: HostLink):
        self._step, self._link = step, link

    def launch(self):
        for _ in range(self.launch_steps):
            go_on, commit = self._link.control[:2].tolist()
            if not go_on:
                return
            self._step.run(bool(commit))

    def pending(self) -> int:
        return 0

    def wait(self):
        """Nothing is under way."""


class _Launches:
    """Launches on the GPU that have not ended."""

    def __init__(self):
        self._events: deque[torch.cuda.Event] = deque()

    def note(self):
        self._events.append(event := torch.cuda.Event())
        event.record()

    def pending(self) -> int:
        """How many there are. Raises what CUDA reports of them."""
        while self._events and self._events[0].query():
            self._events.popleft()
        return len(self._events)

    def wait(self):
        while self._events:
            self._events.popleft().synchronize()


class GraphSteps(_Launches):
    """A launch is one step, a captured graph; it carries the clean rows always, since the host learns too
    late whether there are any."""

    def __init__(self, step: StaticStep, runner: Runner, pool):
        super().__init__()
        self._graph, self._used = capture(step, runner, pool, commit=True)

    def launch(self):
        self._graph.replay()
        self.note()


class LoopSteps(_Launches):
    """A launch is a loop on the GPU over two captured graphs, with and without clean rows.

    Raises RuntimeError where the driver or the toolkit knows no such loop.
    """

    def __init__(self, step: StaticStep, runner: Runner, pool, link: HostLink):
        super().__init__()
        with_commit, used = capture(step, runner, pool, commit=True)
        plain, more = capture(step, runner, pool, commit=False)
        self._loop = DeviceLoop(with_commit, plain, link.control, LAUNCH_STEPS)
        self._used = used, more

    def launch(self):
        self._loop.launch()
        self.note()


def capture(
    step: StaticStep, runner: Runner, pool, commit: bool
) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """The step as a graph, and the buffers that must stay for it. No slot may be active.

    pool: of the memory that ops take and leave within a step, shared by graphs that never run side by side.
    """
    with searching(runner.model.products):
        step.run(commit)  # loads kernels, chooses products, and lets the buffers grow to their size
    torch.cuda.current_stream().synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    # other engines of the process may be at work meanwhile, on threads of their own
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        step.run(commit)
    graph.instantiate()
    return graph, runner.buffers()
