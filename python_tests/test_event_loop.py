"""An engine on an event loop: checks at the call, long texts, cancelled tasks, streams that are left."""

import asyncio
import gc
import threading

import pytest
from checkpoints import write_checkpoint
from engine_tools import assert_dropped, eventually, idle, ids, running_request, slow_down

from edlm_engine import CapacityError, Engine, EngineClosedError, SamplingParams

PROMPT = [3, 14, 15, 92, 65]
PROMPTS = [PROMPT, [7] * 20, [9, 8]]
LONG = {"max_new_tokens": 400, "threshold": None, "ignore_eos": True}  # one token a step
SAMPLED = {"max_new_tokens": 20, "temperature": 1.0, "ignore_eos": True}
LONG_TEXT = "w3 w14" + " " * 40_000 + "w15"  # of three tokens
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("event_loop") / "checkpoint")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


@pytest.fixture
def engine(folder):
    with Engine(folder, dtype="float32", max_batch_size=4) as engine:
        yield engine


@pytest.mark.parametrize("n", (None, 2))
@pytest.mark.parametrize(
    "prompt", (PROMPT, PROMPTS, [], LONG_TEXT, [LONG_TEXT, "w1"]), ids=lambda p: f"{p!s:.20}"
)
def test_agenerate_is_generate(engine, prompt, n):
    params = {"seed": 4, "n": n, "timeout": 60, "priority": 1, **SAMPLED}
    found = asyncio.run(engine.agenerate(prompt, **params))
    assert ids(found) == ids(engine.generate(prompt, **params))


@pytest.mark.parametrize("call", ("generate", "agenerate"))
def test_prompts_that_can_be_read_once(engine, call):
    def run(prompt):
        result = getattr(engine, call)(prompt, max_new_tokens=4)
        return ids(asyncio.run(result) if call == "agenerate" else result)

    assert run(iter(PROMPT)) == run(PROMPT)
    assert run(iter(PROMPTS)) == run(prompt for prompt in PROMPTS) == run(PROMPTS)
    assert run(text for text in (LONG_TEXT, "w1")) == run([LONG_TEXT, "w1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "w1", "threshold": 3}, "threshold must be in"),
        ({"prompt": LONG_TEXT, "threshold": 3}, "threshold must be in"),
        ({"prompt": LONG_TEXT, "timeout": 0}, "timeout must be in"),
        ({"prompt": LONG_TEXT, "priority": 0.5}, "priority must be an integer"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": [1, 128]}, r"prompt\[1\] is 128, outside the vocabulary"),
        ({"prompt": [1] * 600}, "600 prompt tokens"),
        ({"prompt": "w1", "max_tokens": 3}, "unknown sampling parameter 'max_tokens'"),
    ],
    ids=str,
)
def test_errors_come_at_the_call(engine, arguments, message):
    async def run():
        for call in (engine.agenerate, engine.astream):
            with pytest.raises((ValueError, TypeError), match=message):
                call(**arguments)

    asyncio.run(run())


def hold_encoding(engine) -> threading.Event:
    """Encoding waits until the event is set."""
    event, encode = threading.Event(), engine.tokenizer.encode

    def held(text, **options):
        assert event.wait(20), "nothing else went on meanwhile"
        return encode(text, **options)

    engine.tokenizer.encode = held
    return event


@pytest.mark.parametrize("way", ("agenerate", "list", "astream", "achat", "astream_chat"))
def test_long_texts_do_not_hold_up_the_event_loop(engine, way):
    event = hold_encoding(engine)

    async def tick():
        await asyncio.sleep(0.01)
        event.set()

    messages = [{"role": "user", "content": LONG_TEXT}]

    async def ask():
        if "stream" in way:
            prompt = messages if way == "astream_chat" else LONG_TEXT
            return [chunk async for chunk in getattr(engine, way)(prompt, max_new_tokens=4)][-1].generation
        if way == "achat":
            return await engine.achat(messages, max_new_tokens=4)
        result = await engine.agenerate([LONG_TEXT] if way == "list" else LONG_TEXT, max_new_tokens=4)
        return result[0] if way == "list" else result

    async def run():
        return (await asyncio.gather(ask(), tick()))[0]

    assert asyncio.run(run()).prompt_token_ids == [3, 14, 15]


def test_long_texts_that_do_not_fit(engine):
    async def run():
        with pytest.raises(CapacityError, match=r"prompt\[1\]: 20000 prompt tokens"):
            await engine.agenerate(["w1", "w1 " * 20_000])
        stream = engine.astream("w1 " * 20_000)
        with pytest.raises(CapacityError, match="prompt: 20000 prompt tokens"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(run())


def test_a_stream_closed_while_its_text_is_encoded_does_not_begin(engine):
    event = hold_encoding(engine)

    async def run():
        stream = engine.astream(LONG_TEXT, **LONG)
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        event.set()
        with pytest.raises(StopAsyncIteration):
            await first

    asyncio.run(run())
    assert engine.generate(PROMPT, max_new_tokens=1) and engine.stats().prompt_tokens == len(PROMPT)


def test_a_cancelled_task_frees_all_its_slots(engine):
    slow_down(engine)

    async def run():
        task = asyncio.create_task(engine.agenerate(PROMPTS[:2], n=3, **LONG))
        while engine.stats().running < 4:
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    eventually(lambda: idle(engine))
    stats = engine.stats()
    assert (stats.cancelled, stats.finished, stats.failed) == (6, 0, 0)


def test_an_error_of_one_cancels_the_others(engine):
    slow_down(engine)
    decode = engine.tokenizer.decode
    engine.tokenizer.decode = lambda ids: decode(ids) if len(ids) > 3 else 1 / 0
    params = [SamplingParams(**LONG), SamplingParams(max_new_tokens=3, ignore_eos=True)]
    with pytest.raises(ZeroDivisionError):
        asyncio.run(engine.agenerate(PROMPTS[:2], params))
    eventually(lambda: idle(engine))
    assert (engine.stats().cancelled, engine.stats().failed) == (1, 1)


def test_engine_on_an_event_loop(folder):
    async def run():
        async with Engine(folder) as engine:
            assert len((await engine.agenerate(PROMPT, max_new_tokens=3, ignore_eos=True)).token_ids) == 3
        with pytest.raises(EngineClosedError, match="the engine is closed"):
            await engine.agenerate(PROMPT)
        await engine.aclose()

    asyncio.run(run())


def test_streams_are_closed_by_their_block(engine):
    slow_down(engine)
    with engine.stream(PROMPT, **LONG) as stream:
        next(stream)
        request = running_request(engine)
    assert_dropped(engine, request)
    assert list(stream) == []

    async def run():
        async with engine.astream(PROMPT, **LONG) as stream:
            await anext(stream)
            request = running_request(engine)
        assert [chunk async for chunk in stream] == []
        return request

    assert_dropped(engine, asyncio.run(run()))


def test_forgotten_streams_are_cancelled(engine):
    slow_down(engine)

    async def run():
        stream = engine.astream(PROMPT, **LONG)
        await anext(stream)
        request = running_request(engine)
        del stream
        gc.collect()
        await asyncio.to_thread(assert_dropped, engine, request)

    asyncio.run(run())
    for _ in engine.stream(PROMPT, **LONG):
        request = running_request(engine)
        break
    gc.collect()
    assert_dropped(engine, request)


@pytest.mark.parametrize("closed", (False, True))
def test_a_stream_ends_for_every_task_that_reads_it(engine, closed):
    slow_down(engine)

    async def main():
        stream = engine.astream(PROMPT, max_new_tokens=60, threshold=None, ignore_eos=True)

        async def count():
            return len([chunk async for chunk in stream])

        tasks = [asyncio.create_task(count()) for _ in range(3)]
        if closed:
            await asyncio.sleep(0.01)
            await stream.aclose()
        return await asyncio.wait_for(asyncio.gather(*tasks), 20)

    counts = asyncio.run(main())
    assert len(counts) == 3
    assert closed or sum(counts) == 60
    eventually(lambda: idle(engine))
