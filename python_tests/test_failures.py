"""Whatever is raised in an engine's stepping thread: nobody waits in vain, and later calls say why."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from checkpoints import write_checkpoint
from engine_tools import eventually, idle, running_request, slow_down

from edlm_engine import Engine, EngineClosedError
from edlm_engine.core import scheduler, stepping_thread

pytestmark = pytest.mark.timeout(120)
PROMPT = [3, 14, 15, 92, 65]
LONG = {"max_new_tokens": 300, "threshold": None, "ignore_eos": True}
SHORT = {"max_new_tokens": 6, "threshold": None, "ignore_eos": True}


class Panic(BaseException):
    """As libraries in other languages raise it."""


# Where it is raised: the object whose method is called in every step, and the method.
STEP = {
    "observer": lambda engine: (engine._loop.observers, "begin"),
    "drop_ended": lambda engine: (engine._loop._scheduler, "drop_ended"),
    "admit": lambda engine: (engine._loop._scheduler, "admit"),
    "layout": lambda engine: (engine._loop._scheduler, "lay_out"),
    "forward": lambda engine: (engine._loop._runner.model, "forward"),
    "commit": lambda engine: (engine._loop._runner, "_commit"),
    "finish": lambda engine: (engine._loop._scheduler, "finish"),
}
ANYWHERE = STEP | {
    "collect": lambda engine: (engine._loop, "_take_inbox"),
    "tokenizer": lambda engine: (engine.tokenizer, "decode"),
    "listener": lambda engine: (running_request(engine), "on_chunk"),
}
CALLERS = ("stream that runs", "stream that waits", "generate", "agenerate", "astream")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("stepping_thread") / "checkpoint")


@pytest.fixture
def engine(folder):
    with Engine(folder, dtype="float32", max_batch_size=1, num_threads=1) as engine:
        yield engine


def plant(target, name, error, times=1):
    """Let the next calls of a method raise."""
    method, left = getattr(target, name), [error] * times

    def fail(*args, **kwargs):
        if left:
            raise left.pop()
        return method(*args, **kwargs)

    setattr(target, name, fail)


def ends_of_all_callers(engine, begin_to_fail, running=LONG, waiting=LONG) -> list[Exception]:
    """What the CALLERS get when it begins to fail: the first of them runs, the others wait."""
    slow_down(engine)

    async def last(stream):
        return [chunk async for chunk in stream][-1].generation

    async def run():
        first = engine.stream(PROMPT, **running)
        next(first)
        second = engine.stream(PROMPT, **waiting)
        tasks = [asyncio.ensure_future(engine.agenerate(PROMPT, **waiting))]
        tasks += [asyncio.ensure_future(last(engine.astream(PROMPT, **waiting)))]
        calls = [
            pool.submit(lambda: list(first)[-1].generation),
            pool.submit(lambda: list(second)[-1].generation),
            pool.submit(engine.generate, PROMPT, **waiting),
        ]
        while engine.stats().waiting < 4:
            await asyncio.sleep(0.001)
        begin_to_fail()
        return await asyncio.wait_for(
            asyncio.gather(*map(asyncio.wrap_future, calls), *tasks, return_exceptions=True), 30
        )

    with ThreadPoolExecutor(3) as pool:
        return asyncio.run(run())


@pytest.mark.parametrize("kind", (KeyboardInterrupt, SystemExit, Panic))
@pytest.mark.parametrize("place", ANYWHERE)
def test_what_is_no_exception_ends_the_engine(engine, place, kind):
    error = kind("gone wrong")
    reason = f"the engine has broken down: {type(error).__name__}: {error}"
    ends = ends_of_all_callers(engine, lambda: plant(*ANYWHERE[place](engine), error))
    for caller, end in zip(CALLERS, ends, strict=True):
        assert isinstance(end, EngineClosedError) and str(end) == reason, caller
        assert end.__cause__ is error
    assert_says_why(engine, error)


def assert_says_why(engine, error):
    """Every later call does, and none waits."""
    engine._loop._thread.join(timeout=20)
    assert not engine._loop._thread.is_alive()
    reason = f"broken down: {type(error).__name__}: .*; create a new one"
    for call in (engine.generate, engine.stream):
        with pytest.raises(EngineClosedError, match=reason) as caught:
            call(PROMPT)
        assert caught.value.__cause__ is error

    async def on_a_loop():
        with pytest.raises(EngineClosedError, match=reason):
            await engine.agenerate(PROMPT)
        with pytest.raises(EngineClosedError, match=reason):
            engine.astream(PROMPT)

    asyncio.run(on_a_loop())
    assert "broken down" in repr(engine)
    assert engine.stats().running == engine.stats().waiting == 0
    engine.close()


@pytest.mark.parametrize("kind", (RuntimeError, MemoryError))
@pytest.mark.parametrize("place", STEP)
def test_exception_fails_the_requests_of_its_step(engine, place, kind):
    error = kind("gone wrong")
    expected = engine.generate(PROMPT, **SHORT).token_ids
    first, *others = ends_of_all_callers(engine, lambda: plant(*STEP[place](engine), error), waiting=SHORT)
    assert first is error
    assert [other.token_ids for other in others] == [expected] * 4
    eventually(lambda: idle(engine))


@pytest.mark.parametrize("place", ("observer", "drop_ended", "admit"))
def test_steps_that_always_fail_let_nobody_wait(engine, place):
    """No request comes so far as to run: those that wait get the error."""
    error = RuntimeError("out of order")
    ends = ends_of_all_callers(engine, lambda: plant(*STEP[place](engine), error, times=10**6))
    assert ends == [error] * 5
    eventually(lambda: engine.stats().failed >= 5)


@pytest.mark.parametrize("place", ("tokenizer", "listener"))
def test_exception_of_one_request_is_its_own(engine, place):
    expected = engine.generate(PROMPT, **SHORT).token_ids
    error = RuntimeError("out of order")
    first, *others = ends_of_all_callers(
        engine, lambda: plant(*ANYWHERE[place](engine), error), waiting=SHORT
    )
    assert first is error
    assert [other.token_ids for other in others] == [expected] * 4


@pytest.mark.parametrize("kind", (MemoryError, Panic))
def test_request_that_has_left_the_queue_and_does_not_run_yet(engine, monkeypatch, kind):
    error = kind("gone wrong")
    expected = engine.generate(PROMPT, **SHORT).token_ids
    monkeypatch.setattr(scheduler, "Sequence", scheduler.Sequence)  # to have it back afterwards
    plant(scheduler, "Sequence", error)
    with pytest.raises((MemoryError, EngineClosedError), match="gone wrong"):
        engine.generate(PROMPT)
    if isinstance(error, Exception):
        assert engine.generate(PROMPT, **SHORT).token_ids == expected and idle(engine)


@pytest.mark.parametrize("kind", (RuntimeError, Panic))
def test_scheduler_that_cannot_even_let_requests_go(engine, monkeypatch, kind):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    error = kind("gone wrong")
    ends = ends_of_all_callers(engine, lambda: plant(engine._loop._scheduler, "_leave", error, 10**6), SHORT)
    assert [str(end) for end in ends] == [f"the engine has broken down: {kind.__name__}: gone wrong"] * 5
    with pytest.raises(EngineClosedError, match="broken down"):
        engine.generate(PROMPT)


def test_thread_that_fails_at_its_beginning(engine, monkeypatch):
    error = OSError("no OpenMP")
    plant_module(monkeypatch, stepping_thread, "set_threads", error)
    with pytest.raises(EngineClosedError, match="broken down: OSError: no OpenMP"):
        engine.generate(PROMPT)
    assert_says_why(engine, error)


def plant_module(monkeypatch, module, name, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(module, name, fail)


def test_thread_that_cannot_start(engine, monkeypatch):
    with monkeypatch.context() as patch:
        plant_module(patch, threading.Thread, "start", RuntimeError("can't start new thread"))
        for call in (engine.generate, engine.stream):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                call(PROMPT)
    assert len(engine.generate(PROMPT, **SHORT).token_ids) == 6


@pytest.mark.parametrize("kind", (RuntimeError, Panic))
def test_log_handler_that_raises_keeps_nobody_waiting(engine, monkeypatch, kind):
    error = kind("gone wrong")

    class Broken(logging.Handler):
        def emit(self, record):
            raise Panic("of the log")

    handler = Broken(logging.ERROR)
    logging.getLogger("edlm_engine").addHandler(handler)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    try:
        ends = ends_of_all_callers(engine, lambda: plant(*STEP["forward"](engine), error))
    finally:
        logging.getLogger("edlm_engine").removeHandler(handler)
        engine._loop._thread.join(timeout=20)
    assert all(isinstance(end, Exception) for end in ends)
    with pytest.raises(EngineClosedError, match="broken down: Panic"):
        engine.generate(PROMPT)


def test_what_broke_is_in_the_log(engine, caplog):
    plant(*STEP["forward"](engine), ValueError("out of order"))
    with pytest.raises(ValueError, match="out of order"):
        engine.generate([PROMPT], **SHORT)
    plant(*STEP["forward"](engine), Panic("away"))
    with pytest.raises(EngineClosedError):
        engine.generate(PROMPT)
    engine._loop._thread.join(timeout=20)
    first, second = caplog.records
    assert first.message == "a step failed, and with it 1 requests" and first.exc_info[0] is ValueError
    assert second.message == "the stepping thread has broken down" and second.exc_info[0] is Panic
