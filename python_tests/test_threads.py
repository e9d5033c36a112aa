"""Many callers: threads, event loops, and several engines in one process."""

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from checkpoints import config_dict, write_checkpoint
from engine_tools import assert_dropped, eventually, idle, running_request, slow_down

from edlm_engine import Engine, EngineClosedError, SamplingParams
from edlm_engine.core.runner import Runner

PROMPT = [3, 14, 15, 92, 65]
PROMPTS = [[(7 * i + j) % 119 + 1 for j in range(3 + 9 * i)] for i in range(8)]
PARAMS = [
    SamplingParams(max_new_tokens=5 + 7 * i, threshold=(0.5, None)[i % 2], temperature=i % 3 / 2, seed=i)
    for i in range(8)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("threads") / "checkpoint")


@pytest.fixture
def engine(folder):
    with Engine(folder, dtype="float32", max_batch_size=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(folder):
    with Engine(folder, dtype="float32", max_batch_size=1) as engine:
        return [engine.generate(p, params).token_ids for p, params in zip(PROMPTS, PARAMS, strict=True)]


def test_concurrent_callers_get_what_they_get_alone(engine, alone):
    start = threading.Barrier(8)

    def call(i):
        start.wait()
        if i % 2:
            return engine.generate(PROMPTS[i], PARAMS[i]).token_ids
        return list(engine.stream(PROMPTS[i], PARAMS[i]))[-1].generation.token_ids

    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(call, range(8))) == alone


def test_a_list_begins_in_one_step(folder, monkeypatch):
    """Whatever the stepping thread does while the list is handed over."""
    first, run = [], Runner.step
    monkeypatch.setattr(
        Runner,
        "step",
        lambda self, inputs, *rest: (
            first.append(inputs.slots.unique().numel()),
            run(self, inputs, *rest),
        ),
    )
    for _ in range(20):
        with Engine(folder) as engine:
            first.clear()
            engine.generate([[5, 6]] * 8, max_new_tokens=2)
            assert first[0] == 8


def test_callers_share_forwards(engine):
    """Four sequences of 60 steps take one forward more than 60: the first starts before the others come."""
    gate, count, step = threading.Event(), [], engine._loop._runner.step
    engine._loop._runner.step = lambda *inputs: (gate.wait(), count.append(1), step(*inputs))
    params = {"max_new_tokens": 60, "threshold": None, "ignore_eos": True}
    streams = [engine.stream(PROMPTS[0], **params)]
    eventually(lambda: engine._loop._scheduler.running)
    streams += [engine.stream(prompt, **params) for prompt in PROMPTS[1:4]]
    gate.set()
    assert [len(list(stream)) for stream in streams] == [60] * 4
    assert len(count) == 61


def test_callers_that_come_and_go(engine, alone):
    """Streams closed at different steps beside requests that run to their end."""

    def quit_early(i):
        stream = engine.stream([9] * (i + 1), max_new_tokens=200, threshold=None)
        for _ in range(i):
            next(stream)
        stream.close()

    with ThreadPoolExecutor(12) as pool:
        leaving = [pool.submit(quit_early, i) for i in range(8)]
        staying = [pool.submit(engine.generate, p, params) for p, params in zip(PROMPTS, PARAMS, strict=True)]
        assert [future.result().token_ids for future in staying] == alone
        for future in leaving:
            future.result()
    eventually(lambda: idle(engine))


def test_close_while_threads_generate(folder):
    engine = Engine(folder, max_batch_size=2)
    slow_down(engine)

    def call(i):
        try:
            engine.generate(PROMPTS[i], max_new_tokens=300, threshold=None, ignore_eos=True)
        except EngineClosedError:
            return "closed"

    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(call, i) for i in range(6)]
        running_request(engine)
        engine.close()
        assert [future.result(timeout=20) for future in calls] == ["closed"] * 6


def test_two_engines(folder, tmp_path, alone):
    other = write_checkpoint(tmp_path / "other", config_dict("qwen2", block_size=4), seed=1)
    with Engine(other, dtype="float32") as b:
        expected = b.generate(PROMPTS, PARAMS)
    with (
        Engine(folder, dtype="float32") as a,
        Engine(other, dtype="float32") as b,
        ThreadPoolExecutor(2) as pool,
    ):
        of_a, of_b = pool.submit(a.generate, PROMPTS, PARAMS), pool.submit(b.generate, PROMPTS, PARAMS)
        assert [r.token_ids for r in of_a.result()] == alone
        assert [r.token_ids for r in of_b.result()] == [r.token_ids for r in expected]


def threads_of(engine) -> int:
    seen, step = [], engine._loop._runner.step
    engine._loop._runner.step = lambda *inputs: (seen.append(torch.get_num_threads()), step(*inputs))
    engine.generate(PROMPT, max_new_tokens=1)
    return seen[0]


def test_num_threads_is_of_its_engine_alone(folder):
    before = torch.get_num_threads()
    with Engine(folder, num_threads=before + 2) as a, Engine(folder) as b, Engine(folder, num_threads=1) as c:
        assert [threads_of(engine) for engine in (a, c, b)] == [before + 2, 1, before]
    assert torch.get_num_threads() == before


def test_num_threads_does_not_change_the_tokens(folder, alone):
    with Engine(folder, dtype="float32", num_threads=3) as engine:
        assert [r.token_ids for r in engine.generate(PROMPTS, PARAMS)] == alone


def test_agenerate(engine, alone):
    async def run():
        calls = [engine.agenerate(p, params) for p, params in zip(PROMPTS, PARAMS, strict=True)]
        return [result.token_ids for result in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == alone


def test_astream(engine, alone):
    async def collect(i):
        chunks = [chunk async for chunk in engine.astream(PROMPTS[i], PARAMS[i])]
        assert [chunk.generation is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
        return chunks[-1].generation.token_ids

    async def run():
        return await asyncio.gather(*map(collect, range(8)))

    assert asyncio.run(run()) == alone


def test_cancelled_task_frees_its_pages(engine):
    slow_down(engine)

    async def run():
        task = asyncio.create_task(engine.agenerate(PROMPT, max_new_tokens=400, threshold=None))
        await asyncio.sleep(0)  # the task submits
        request = running_request(engine)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return request

    assert_dropped(engine, asyncio.run(run()))
    assert engine.generate(PROMPT, max_new_tokens=2).token_ids


def test_cancelled_task_that_still_waits(folder):
    with Engine(folder, max_batch_size=1) as engine:
        slow_down(engine)

        async def run():
            blocker = engine.stream(PROMPT, max_new_tokens=400, threshold=None)
            next(blocker)
            task = asyncio.create_task(engine.agenerate(PROMPT, max_new_tokens=400, threshold=None))
            while not engine._loop._scheduler.waiting:
                await asyncio.sleep(0.001)
            request = engine._loop._scheduler.waiting[0]
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            blocker.close()
            return request

        assert asyncio.run(run()).future.cancelled()
        eventually(lambda: idle(engine))


def test_astream_left_early_frees_its_pages(engine):
    slow_down(engine)

    async def run():
        stream = engine.astream(PROMPT, max_new_tokens=400, threshold=None)
        async for _ in stream:
            request = running_request(engine)
            break
        await stream.aclose()
        return request

    assert_dropped(engine, asyncio.run(run()))


def test_event_loop_that_dies_does_not_disturb_others(engine, alone, caplog):
    async def run():
        stream = engine.astream(PROMPT, max_new_tokens=400, threshold=None)
        await anext(stream)
        return stream

    event_loop = asyncio.new_event_loop()
    orphan = event_loop.run_until_complete(run())
    event_loop.close()
    assert [r.token_ids for r in engine.generate(PROMPTS, PARAMS)] == alone
    eventually(lambda: idle(engine))
    assert not caplog.records  # no callback that failed
    del orphan


def test_errors_reach_async_callers(engine):
    slow_down(engine)

    async def run():
        with pytest.raises(ValueError, match="prompt is empty"):
            await engine.agenerate("")
        with pytest.raises(ValueError, match="threshold must be in"):
            engine.astream(PROMPT, threshold=3.0)
        task = asyncio.create_task(engine.agenerate(PROMPT, max_new_tokens=400, threshold=None))
        while not engine._loop._scheduler.running:
            await asyncio.sleep(0.001)
        engine.close()
        with pytest.raises(EngineClosedError):
            await task

    asyncio.run(run())


def test_process_ends_while_a_request_runs(folder):
    """No hang, no noise: the engine is closed at exit."""
    code = (
        "from edlm_engine import Engine; import sys; engine = Engine(sys.argv[1]);"
        "stream = engine.stream([1, 2], max_new_tokens=500, threshold=None); next(stream); print('left')"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_forked_child_gets_an_error_and_does_not_wait_forever(folder):
    code = """
import os, sys
from edlm_engine import Engine, EngineClosedError
engine = Engine(sys.argv[1], num_threads=1)
engine.generate([1, 2], max_new_tokens=3)
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    engine.generate([1, 2], max_new_tokens=3)
else:
    try:
        engine.generate([1, 2], max_new_tokens=3)
    except EngineClosedError as error:
        os._exit(7 if "after forking" in str(error) else 1)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder], check=True, timeout=120)


def openmp_at_work(first: str, **variables) -> tuple[str, str]:
    """How often a waiting thread of OpenMP looks before it sleeps where torch is imported behind `first`;
    what the program's own environment says of the policy afterwards."""
    code = f"{first}import torch, os; torch.ones(1); print(os.environ.get('OMP_WAIT_POLICY'))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **variables}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    looks = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert len(looks) == 1  # loaded once
    return looks[0].partition("=")[2].strip(" '"), done.stdout.strip()


def test_openmp_waits_passively_and_the_environment_is_as_it_was():
    assert openmp_at_work("import edlm_engine; ") == ("0", "None")
    assert openmp_at_work("import edlm_engine.engine; ") == ("0", "None")
    late = openmp_at_work("import torch, edlm_engine; ")
    assert late[0] != "0" and late[1] == "None"
    chosen = openmp_at_work("import edlm_engine; ", OMP_WAIT_POLICY="ACTIVE")
    assert chosen[0] != "0" and chosen[1] == "ACTIVE"


@pytest.mark.parametrize("main", (1, 2))
def test_torch_threads_of_the_program_are_left_alone(main):
    code = (
        f"import torch, threading; torch.set_num_threads({main}); from edlm_engine import Engine\n"
        "def count(): print(torch.get_num_threads())\n"
        "with Engine('edlm-tiny', num_threads=3) as engine:\n"
        "    engine.generate('Q: x', max_new_tokens=4)\n"
        "    engine._loop._scheduler.read = lambda *_: count() or 1 / 0\n"  # on the stepping thread
        "    try: engine.generate('Q: x', max_new_tokens=4)\n"
        "    except ZeroDivisionError: pass\n"
        "    count(); thread = threading.Thread(target=count); thread.start(); thread.join()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["3", str(main), str(main)]
