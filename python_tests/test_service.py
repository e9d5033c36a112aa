"""What a service asks of an engine: samples, chats, limits, order, numbers."""

import asyncio
import copy
import logging
import pickle
import shutil
import subprocess
import sys
import time

import pytest
from checkpoints import write_checkpoint
from engine_tools import eventually, idle, ids, slow_down

from edlm_engine import (
    Engine,
    EngineBusyError,
    RequestTimeoutError,
    SamplingParams,
)

PROMPT = [3, 14, 15, 92, 65]
PROMPTS = [PROMPT, [7] * 20, [9, 8]]
LONG = {"max_new_tokens": 400, "threshold": None, "ignore_eos": True}  # one token a step
SAMPLED = {"max_new_tokens": 20, "temperature": 1.0, "ignore_eos": True}
LONG_TEXT = "w3 w14" + " " * 40_000 + "w15"  # of three tokens
MESSAGES = [{"role": "user", "content": "w3 w14"}, {"role": "user", "content": "w15"}]
TEMPLATE = (
    "{% for message in messages %}{{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}w99{% endif %}"
)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("service") / "checkpoint")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def engine(folder):
    with Engine(folder, dtype="float32", max_batch_size=4) as engine:
        yield engine


@pytest.fixture
def narrow(folder):
    """One request at a time, each step of which takes a while."""
    with Engine(folder, dtype="float32", max_batch_size=1, max_waiting=1) as engine:
        slow_down(engine, 0.01)
        yield engine


def test_samples_have_seeds_of_their_own(engine):
    samples = ids(engine.generate(PROMPT, n=3, seed=5, **SAMPLED))
    assert samples == [ids(engine.generate(PROMPT, seed=5 + i, **SAMPLED)) for i in range(3)]
    assert samples[0] != samples[1] != samples[2]
    assert ids(engine.generate(PROMPT, n=3, seed=5, **SAMPLED)) == samples
    last = ids(engine.generate(PROMPT, n=2, seed=2**63 - 1, **SAMPLED))
    assert last[1] == ids(engine.generate(PROMPT, seed=0, **SAMPLED))


def test_samples_without_a_seed_differ(engine):
    a, b = engine.generate("w1 w2", n=2, **SAMPLED)
    assert a.token_ids != b.token_ids and a.prompt_token_ids == b.prompt_token_ids == [1, 2]
    a, b = engine.generate(PROMPT, n=2, max_new_tokens=20)
    assert a.token_ids == b.token_ids == ids(engine.generate(PROMPT, max_new_tokens=20))


def test_samples_of_a_list(engine):
    params = [SamplingParams(seed=i, **SAMPLED) for i in (3, 8, 3)]
    results = ids(engine.generate(PROMPTS, params, n=2))
    assert results == [ids(engine.generate(p, own, n=2)) for p, own in zip(PROMPTS, params, strict=True)]
    assert len(engine.generate(PROMPT, n=1, **SAMPLED)) == 1
    assert engine.generate([], n=2) == engine.generate([]) == []


@pytest.mark.parametrize("n", (0, -1, 1.5, True, "2", 10**9, [2]))
def test_bad_number_of_samples(engine, n):
    for call in (engine.generate, engine.agenerate):
        with pytest.raises(ValueError, match="n must be"):
            call(PROMPT, n=n)
    assert engine.stats().prompt_tokens == 0


def test_chats_are_requests_of_the_rendered_prompt(engine):
    prompt = engine.chat_prompt(MESSAGES)
    assert prompt == "w3 w14 w15 w99"
    params = {"seed": 2, **SAMPLED}
    expected = engine.generate(prompt, **params)
    assert expected.prompt_token_ids == [3, 14, 15, 99]

    async def on_a_loop():
        chunks = [chunk async for chunk in engine.astream_chat(MESSAGES, **params)]
        return await engine.achat(MESSAGES, **params), chunks[-1].generation

    streamed = list(engine.stream_chat(MESSAGES, **params))[-1].generation
    for result in (engine.chat(MESSAGES, **params), streamed, *asyncio.run(on_a_loop())):
        assert result.prompt_token_ids == expected.prompt_token_ids
        assert result.token_ids == expected.token_ids
    expected = ids(engine.generate(prompt, n=2, **params))
    assert ids(engine.chat(MESSAGES, n=2, **params)) == expected
    assert ids(asyncio.run(engine.achat(MESSAGES, n=2, **params))) == expected


def test_options_of_chats(engine):
    bare = {"add_generation_prompt": False, "max_new_tokens": 2}
    assert engine.chat(MESSAGES, **bare).prompt_token_ids == [3, 14, 15]
    defaults = dict.fromkeys(
        ("tools", "documents", "template_kwargs", "add_generation_prompt", "continue_final_message")
    )
    assert engine.chat_prompt(MESSAGES, **defaults) == engine.chat_prompt(MESSAGES)
    for call in (engine.chat, engine.stream_chat, engine.achat):
        with pytest.raises(TypeError, match="unknown sampling parameter 'tool'"):
            call(MESSAGES, tool=[])
        with pytest.raises(ValueError, match="top_p must be in"):
            call(MESSAGES, top_p=2)


@pytest.mark.parametrize("stepping", ("eager", "direct"))
def test_timeout_of_a_running_request(folder, stepping):
    with Engine(folder, dtype="float32", stepping=stepping) as engine:
        engine.generate(PROMPT, max_new_tokens=1)
        slow_down(engine, 0.01)
        other = engine.stream(PROMPTS[1], max_new_tokens=60, threshold=None, ignore_eos=True)
        begin = time.monotonic()
        with pytest.raises(
            RequestTimeoutError, match=r"within timeout=0\.5 s; it ended with \d+ tokens"
        ) as found:
            engine.generate(PROMPT, timeout=0.5, **LONG)
        assert isinstance(found.value, TimeoutError) and time.monotonic() - begin >= 0.5
        assert len(list(other)[-1].generation.token_ids) == 60
        eventually(lambda: idle(engine))
        assert (engine.stats().failed, engine.stats().finished) == (1, 2)


def test_timeout_while_waiting(narrow):
    with narrow.stream(PROMPT, **LONG) as blocker:
        next(blocker)
        with pytest.raises(RequestTimeoutError, match=r"timeout=0\.05 s; it ended waiting for its turn"):
            narrow.generate(PROMPT, timeout=0.05)
        with pytest.raises(RequestTimeoutError, match="waiting for its turn"):
            asyncio.run(narrow.agenerate(PROMPT, timeout=0.05))
        assert narrow.stats().running == 1
    eventually(lambda: idle(narrow))


def test_the_time_limit_counts_the_waiting(narrow):
    stream = narrow.stream(PROMPT, timeout=60, **LONG)
    next(stream)
    stream._request.submitted -= 61  # as if it had waited before it was admitted
    with pytest.raises(RequestTimeoutError):
        list(stream)


def test_timeout_of_streams(engine):
    slow_down(engine, 0.01)
    with pytest.raises(RequestTimeoutError):
        for chunk in engine.stream(PROMPT, timeout=0.2, **LONG):
            assert chunk.generation is None

    async def run():
        with pytest.raises(RequestTimeoutError):
            async for chunk in engine.astream(PROMPT, timeout=0.2, **LONG):
                assert chunk.generation is None

    asyncio.run(run())
    eventually(lambda: idle(engine))


def test_timeout_that_is_kept(engine):
    assert ids(engine.generate(PROMPTS, timeout=60, max_new_tokens=9)) == ids(
        engine.generate(PROMPTS, max_new_tokens=9)
    )


@pytest.mark.parametrize(
    "bad", ({"timeout": -1}, {"timeout": "1"}, {"priority": 2**40}, {"priority": "high"})
)
def test_bad_scheduling(engine, bad):
    (name,) = bad
    for call in (engine.generate, engine.stream, engine.agenerate):
        with pytest.raises(ValueError, match=f"{name} must be"):
            call(PROMPT, **bad)


def test_priority_orders_those_that_wait(folder):
    with Engine(folder, dtype="float32", max_batch_size=1) as engine:
        slow_down(engine)
        blocker = engine.stream(PROMPT, **LONG)
        next(blocker)
        streams = [engine.stream(PROMPT, max_new_tokens=2, priority=p) for p in (0, 5, None, -1, 5, 7)]
        blocker.close()
        assert all(list(stream)[-1].generation for stream in streams)
        admitted = [stream._request.admitted for stream in streams]
        assert sorted(range(6), key=admitted.__getitem__) == [5, 1, 4, 0, 2, 3]


def test_as_many_wait_as_may(narrow):
    with narrow.stream(PROMPT, **LONG) as running:
        next(running)
        waiting = narrow.stream(PROMPT, max_new_tokens=2)
        before = narrow.stats()
        for call in (narrow.generate, narrow.stream, lambda p: asyncio.run(narrow.agenerate(p))):
            with pytest.raises(EngineBusyError, match="1 more request would make 2 wait; max_waiting is 1"):
                call(PROMPT)
        with pytest.raises(EngineBusyError, match="4 more requests would make 5 wait"):
            narrow.generate(PROMPTS[:2], n=2)
        stats = narrow.stats()
        assert (
            (stats.running, stats.waiting, stats.failed) == (1, 1, 0) == (before.running, before.waiting, 0)
        )
    assert list(waiting)[-1].generation
    eventually(lambda: idle(narrow))
    assert narrow.stats().finished == 1
    assert len(narrow.generate(PROMPTS[:2], max_new_tokens=2)) == 2  # one runs, one waits
    with pytest.raises(EngineBusyError):  # though there is room for some of them
        narrow.generate(PROMPTS, max_new_tokens=2)
    assert narrow.stats().finished == 3


def test_none_may_wait(folder):
    with Engine(folder, max_batch_size=2, max_waiting=0) as engine:
        assert len(engine.generate(PROMPTS[:2], max_new_tokens=2)) == 2
        with pytest.raises(EngineBusyError, match="3 more requests would make 1 wait; max_waiting is 0"):
            engine.generate(PROMPTS, max_new_tokens=2)


def test_stats_of_a_known_workload(engine):
    first = engine.stats()
    assert (first.running, first.waiting, first.finished, first.tokens, first.steps) == (0, 0, 0, 0, 0)
    assert first.free_pages == first.pages > 0 and first.tokens_per_forward == 0
    one = engine.generate(PROMPT, max_new_tokens=20, threshold=None, ignore_eos=True)
    stats = engine.stats()
    assert (stats.finished, stats.prompt_tokens, stats.tokens, stats.forwards) == (1, 5, 20, 20)
    assert stats.steps == one.forwards.prefill + one.forwards.denoising
    more = engine.generate(PROMPTS * 2, max_new_tokens=8, threshold=None, ignore_eos=True)
    stats, results = engine.stats(), [one, *more]
    assert (stats.running, stats.waiting, stats.failed, stats.cancelled) == (0, 0, 0, 0)
    assert (stats.finished, stats.prompt_tokens, stats.tokens) == (7, 5 + 2 * 27, 20 + 6 * 8)
    assert stats.forwards == sum(result.nfe for result in results) == stats.tokens
    assert stats.tokens_per_forward == 1 == stats.to_dict()["tokens_per_forward"]
    assert one.forwards.denoising < stats.steps < stats.forwards  # they shared steps
    assert all(0 < result.queue_seconds < result.seconds for result in results)
    assert stats.queue_seconds == pytest.approx(sum(result.queue_seconds for result in results))
    assert stats.run_seconds == pytest.approx(sum(r.seconds - r.queue_seconds for r in results))
    assert stats.free_pages == stats.pages


def test_stats_and_repr_while_requests_run(narrow, folder):
    assert repr(narrow) == f"<Engine {str(folder)!r} cpu/float32, 0 running, 0 waiting>"
    stream = narrow.stream(PROMPT, **LONG)
    next(stream)
    waiting = narrow.stream(PROMPT, max_new_tokens=2)
    stats = narrow.stats()
    assert (stats.running, stats.waiting, stats.finished) == (1, 1, 0)
    used = -(-(len(PROMPT) + LONG["max_new_tokens"]) // stats.page_tokens)
    assert stats.pages - stats.free_pages == used
    assert repr(narrow).endswith("cpu/float32, 1 running, 1 waiting>")
    stream.close()
    assert list(waiting)[-1].generation.queue_seconds > 0
    narrow.close()
    assert repr(narrow).endswith("cpu/float32, closed>")
    assert narrow.stats().finished == narrow.stats().cancelled == 1


@pytest.mark.parametrize("hand_over", (pickle.dumps, copy.copy, copy.deepcopy))
def test_engines_cannot_be_handed_over(engine, hand_over):
    with pytest.raises(
        TypeError, match="an Engine cannot be pickled or copied: it holds a model and a thread"
    ):
        hand_over(engine)


def test_loading_is_logged_for_those_who_listen(folder, caplog):
    with caplog.at_level(logging.INFO, "edlm_engine"), Engine(folder, dtype="float32"):
        pass
    assert {record.name for record in caplog.records} == {"edlm_engine"}
    said = caplog.text
    assert f"loading {folder}" in said and f"loaded {folder} in" in said and "cpu, float32" in said


@pytest.mark.parametrize("level", (None, "INFO"))
def test_engines_are_silent_by_default(folder, level):
    code = "import logging, sys\nfrom edlm_engine import Engine\n"
    code += f"logging.basicConfig(level={level!r})\n" if level else ""
    code += "handlers = list(logging.getLogger().handlers)\n"
    code += "with Engine(sys.argv[1]) as engine: engine.generate([1, 2], max_new_tokens=2)\n"
    code += "assert logging.getLogger().handlers == handlers"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=100)
    said = [line for line in done.stderr.splitlines() if line.startswith("INFO:edlm_engine:load")]
    assert (done.returncode, done.stdout, len(said)) == (0, "", 2 if level == "INFO" else 0)
    assert level == "INFO" or done.stderr == ""


def test_variables_of_a_template_by_themselves_and_by_their_other_name(folder, tmp_path):
    source = "{{ messages[0].content }}{% if not enable_thinking | default(true) %} w8{% endif %}"
    other = shutil.copytree(folder, tmp_path / "checkpoint")
    (other / "chat_template.jinja").write_text(source)
    off = {"enable_thinking": False}
    with Engine(other) as engine:
        assert "w8" not in engine.chat_prompt(MESSAGES)
        for options in (off, {"template_kwargs": off}, {"chat_template_kwargs": off}):
            prompt = engine.chat_prompt(MESSAGES, **options)
            assert prompt.endswith(" w8")
            result = engine.chat(MESSAGES, max_new_tokens=2, **options)
            assert result.prompt_token_ids == engine.tokenizer.encode(prompt, special=False)
        both = {"template_kwargs": {"enable_thinking": True}, "chat_template_kwargs": off}
        assert engine.chat_prompt(MESSAGES, **both) == engine.chat_prompt(MESSAGES)
        with pytest.raises(TypeError, match=r"unknown option 'thinking'; known: .*template_kwargs"):
            engine.chat_prompt(MESSAGES, thinking=False)
        with pytest.raises(TypeError, match="unknown sampling parameter 'thinking'"):
            engine.chat(MESSAGES, thinking=False)
