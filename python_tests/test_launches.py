"""The ways to launch steps on a GPU, with stand-ins for torch's events and graphs: what they queue, when they
say that it has ended, and that a step is captured as it must be."""

import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edlm_engine.device_led import launches as stepping
from edlm_engine.device_led import run_ahead as ahead
from edlm_engine.device_led.launches import DirectSteps, GraphSteps, LoopSteps, capture
from edlm_engine.device_led.run_ahead import RunAhead


class Event:
    """What was recorded has ended once `clock` has come to its number."""

    recorded = clock = 0

    def record(self):
        Event.recorded += 1
        self._number = Event.recorded

    def query(self) -> bool:
        return self._number <= Event.clock

    def synchronize(self):
        Event.clock = max(Event.clock, self._number)


class Graph:
    def __init__(self, keep_graph=False):
        self.kept, self.log = keep_graph, ["made"]

    def instantiate(self):
        self.log.append("instantiated")

    def replay(self):
        self.log.append("replayed")


class Stream:
    log: list = []  # noqa: RUF012

    def synchronize(self):
        self.log.append("synchronized")


class Step:
    def __init__(self):
        self.log = []

    def run(self, commit: bool):
        assert Runner.model.products.may_search == (
            ("capture", "pool", "thread_local") not in Stream.log[-1:]
        )
        self.log.append(commit)
        Stream.log.append("step")

    def lay_out(self):
        self.log.append("laid out")


class Runner:
    model = SimpleNamespace(products=SimpleNamespace(may_search=False))

    def buffers(self):
        return ["memory"]


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    Event.recorded = Event.clock = 0
    Stream.log = []

    @contextmanager
    def capturing(graph, pool, capture_error_mode):
        Stream.log.append(("capture", pool, capture_error_mode))
        yield
        Stream.log.append("captured")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")


def test_capture_runs_the_step_once_before():
    graph, used = capture(Step(), Runner(), "pool", commit=True)
    assert Stream.log == ["step", "synchronized", ("capture", "pool", "thread_local"), "step", "captured"]
    assert graph.kept and graph.log == ["made", "instantiated"] and used == ["memory"]


def test_graph_steps():
    step = Step()
    way = GraphSteps(step, Runner(), "pool")
    assert step.log == [True, True] and way.pending() == 0
    way.launch()
    way.launch()
    assert way.pending() == 2 and way._graph.log[-2:] == ["replayed"] * 2
    Event.clock = 1
    assert way.pending() == 1
    way.wait()
    assert way.pending() == 0 and Event.clock == 2


def test_loop_steps(monkeypatch):
    made = []

    class Loop:
        def __init__(self, with_commit, plain, control, max_steps):
            made.extend((with_commit, plain, control, max_steps))

        def launch(self):
            made.append("launched")

    class Link:
        control = "control"

    monkeypatch.setattr(stepping, "DeviceLoop", Loop)
    step = Step()
    way = LoopSteps(step, Runner(), "pool", Link())
    assert step.log == [True, True, False, False]
    assert isinstance(made[0], Graph) and isinstance(made[1], Graph) and made[0] is not made[1]
    way.launch()
    assert made[2:] == ["control", stepping.LAUNCH_STEPS, "launched"] and way.pending() == 1


@pytest.mark.parametrize("way", (GraphSteps, LoopSteps))
def test_buffers_stay_as_long_as_their_graphs(monkeypatch, way):
    """A graph has their addresses, and nothing else knows of them."""
    found = []

    class Buffer:
        pass

    class Growing(Runner):
        def buffers(self):
            found.append(weakref.ref(buffer := Buffer()))
            return [buffer]

    monkeypatch.setattr(stepping, "DeviceLoop", lambda *_: None)
    made = way(Step(), Growing(), "pool", *[SimpleNamespace(control=0)] * (way is LoopSteps))
    assert found and all(buffer() is not None for buffer in found)
    del made
    assert all(buffer() is None for buffer in found)


def test_direct_steps_go_on_while_control_says_so():
    control = torch.tensor([1, 0, 1])
    log = []

    def run(commit):
        log.append(commit)
        if len(log) == 6:
            control[0] = 0

    way = DirectSteps(SimpleNamespace(run=run), SimpleNamespace(control=control))
    way.launch()
    assert log == [False] * 4
    control[1] = 1
    way.launch()
    way.launch()
    assert log == [False] * 4 + [True] * 2
    assert way.pending() == 0 and way.wait() is None  # nothing is ever under way


def run_ahead(monkeypatch, name: str) -> RunAhead:
    class State:
        records = torch.zeros(4, 1)

        def __init__(self):
            self.active_then = []

        def upload(self):
            self.active_then.append(self.host.active.tolist())

    runner = Runner()
    runner.state = State()
    runner.state.host = SimpleNamespace(active=np.ones(4, np.int32))
    monkeypatch.setattr(ahead, "HostLink", lambda state, ring_size: ring_size)
    return RunAhead(name, None, runner, None)


def test_there_is_room_for_the_steps_of_two_launches_while_those_of_a_third_are_read(monkeypatch):
    assert run_ahead(monkeypatch, "direct")._link == 3 * 64


def test_a_step_is_captured_while_it_has_nothing_to_do(monkeypatch):
    own, step = run_ahead(monkeypatch, "graph"), Step()
    assert isinstance(own._make_way(step), GraphSteps)
    state = own._runner.state
    assert state.active_then == [[0] * 4] and step.log[0] == "laid out"
    assert state.host.active.tolist() == [1] * 4  # as before, for the steps that follow


def test_where_there_is_no_loop_on_the_gpu_a_graph_per_step_takes_its_place(monkeypatch):
    class Refusing:
        def __init__(self, *arguments):
            raise RuntimeError("driver")

    monkeypatch.setattr(stepping, "DeviceLoop", Refusing)
    own = run_ahead(monkeypatch, "device")
    monkeypatch.setattr(
        ahead, "LoopSteps", lambda *a: stepping.LoopSteps(*a[:3], type("L", (), {"control": 0}))
    )
    with pytest.warns(UserWarning, match="one graph per step instead: driver"):
        assert isinstance(own._make_way(Step()), GraphSteps)
    assert own.stepping == "graph"
