"""edlm_engine.tools.metering: the same counts whoever leads the steps, and times that add up."""

import gc
import threading
import time
import weakref

import pytest
from checkpoints import config_dict, write_checkpoint
from engine_tools import slow_down

from edlm_engine import Engine
from edlm_engine.tools.metering import CpuTime, Meter

PROMPTS = [[5, 9, 2, 77], list(range(1, 40))]
PARAMS = {"max_new_tokens": 40, "threshold": None, "steps_per_block": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("metering") / "checkpoint", config_dict())


@pytest.mark.parametrize("stepping", ["eager", "static"])
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


def test_captured_steps_are_counted_though_nobody_sees_them(folder):
    """As on a GPU: replays come by neither forward nor compute."""
    with Engine(folder, dtype="float32") as engine:
        meter = Meter(engine)
        meter._forwards.seconds = lambda: [0.01]  # of the prompt's step alone
        found = meter.run(PROMPTS, **PARAMS)
    assert found["steps"] == 12 and found["ms_per_step"] > 0
    assert found["ms_per_forward"] is found["scheduler_and_python_share"] is None


def test_cpu_time_of_sleep_is_none_and_wait_waits():
    spent = CpuTime()
    call = spent.around(lambda: time.sleep(0.1))
    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.02)
    spent.wait()
    assert not spent._idle.is_set() or 0 < spent.seconds < 0.05
    thread.join()
    assert 0 < spent.seconds < 0.05


def test_cpu_time_of_a_call_that_fails():
    spent = CpuTime()

    def fail():
        raise ValueError

    with pytest.raises(ValueError):
        spent.around(fail)()
    spent.wait()
    assert spent.seconds > 0


def test_a_metered_engine_can_be_forgotten(folder):
    with Engine(folder, stepping="static") as engine:
        Meter(engine).run(PROMPTS, **PARAMS)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
