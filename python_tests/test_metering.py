"""edlm_engine.tools.metering: the same counts whoever leads the steps, and times that add up."""

import gc
import time
import weakref

import pytest
from checkpoints import config_dict, write_checkpoint
from engine_tools import slow_down

from edlm_engine import Engine
from edlm_engine.core.observers import MOMENTS
from edlm_engine.tools.metering import CpuTime, Meter, Spans

PROMPTS = [[5, 9, 2, 77], list(range(1, 40))]
PARAMS = {"max_new_tokens": 40, "threshold": None, "steps_per_block": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("metering") / "checkpoint", config_dict())


@pytest.mark.parametrize("stepping", ["eager", "direct"])
def test_counts_and_shares(folder, stepping):
    with Engine(folder, dtype="float32", stepping=stepping) as engine:
        slow_down(engine, 0.01)
        meter = Meter(engine)
        for _ in range(2):  # the second run knows nothing of the first
            found = meter.run(PROMPTS, **PARAMS)
    assert found["steps"] == 12  # three blocks, the last a short one, in four steps each
    assert found["tokens_per_forward"] == 80 / 24
    assert found["ms_per_step"] >= 10
    assert 0 < found["ms_per_forward"] < found["ms_per_step"]
    # most of a step is the sleep, which counts as computing
    assert found["head_and_unmask_share"] > 0.5
    assert 0 < found["scheduler_and_python_share"] < found["outside_forward_share"] < 1
    assert 0 < found["host_ms_per_step"] < found["ms_per_step"]
    assert found["forwards_per_s"] == pytest.approx(found["tokens_per_s"] * 12 / 80)


def test_captured_steps_are_counted_though_nobody_sees_them(folder, monkeypatch):
    """As on a GPU: replays come by neither forward nor commit."""
    monkeypatch.setattr(Spans, "seconds", lambda self: [0.01])  # of the prompt's step alone
    with Engine(folder, dtype="float32") as engine:
        found = Meter(engine).run(PROMPTS, **PARAMS)
    assert found["steps"] == 12 and found["ms_per_step"] > 0
    assert found["ms_per_forward"] is found["scheduler_and_python_share"] is None


def test_cpu_time_of_sleep_is_none():
    spent = CpuTime()
    spent.end()  # of a moment that had begun before anybody looked
    assert spent.seconds == 0
    spent.begin()
    time.sleep(0.1)
    spent.end()
    assert 0 < spent.seconds < 0.05


class Noted:
    """An observer that writes down what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, moment: str):
        self.told.append(moment)

    def end(self, moment: str):
        self.told.append(f"/{moment}")


@pytest.mark.parametrize("stepping", ["eager", "direct"])
def test_observers_come_and_go(folder, stepping):
    """Several see the same moments, in order and each with its end; afterwards nobody is told anything."""
    one, other = Noted(), Noted()
    with Engine(folder, dtype="float32", stepping=stepping) as engine:
        Meter(engine).run([[5, 9]], max_new_tokens=20)  # comes back when its last moment has ended
        with engine.observe(one), engine.observe(other):
            Meter(engine).run([[5, 9]], max_new_tokens=20)
        seen = list(one.told)
        engine.generate([5, 9], max_new_tokens=20)
    assert one.told == other.told == seen and set(MOMENTS) <= set(seen) and "/read" in seen
    open_now = []
    for moment in seen:
        if moment.startswith("/"):
            assert open_now.pop() == moment[1:]
        else:
            assert moment in MOMENTS
            open_now.append(moment)
    assert not open_now
    assert seen[:2] == ["step", "layout"]
    assert seen.count("forward") == seen.count("commit") == seen.count("read") > 0


def test_a_metered_engine_can_be_forgotten(folder):
    with Engine(folder, stepping="direct") as engine:
        Meter(engine).run(PROMPTS, **PARAMS)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
