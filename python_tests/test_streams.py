"""Streams by themselves: what they give out, and when they cancel their request."""

import asyncio
import gc
import queue
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest
from test_scheduler import request

from edlm_engine import EngineClosedError
from edlm_engine.streams import AsyncChunkStream, ChunkStream

pytestmark = pytest.mark.timeout(20)


class Thread:
    """Takes requests as the stepping thread does, and does nothing with them."""

    def __init__(self):
        self.submitted, self.cancelled, self.error = [], [], None

    def submit(self, given):
        assert given.on_chunk is not None  # its first chunk may come at once
        self.submitted.append(given)

    def cancel(self, given):
        self.cancelled.append(given)

    def check_process(self):
        if self.error:
            raise self.error


@pytest.fixture
def made():
    """A stream with its thread and request."""
    thread, r = Thread(), request(5, 8)
    return ChunkStream(thread, r), thread, r


def test_chunks_come_in_their_order_and_then_the_end():
    thread, r = Thread(), request(5, 8)
    stream = ChunkStream(thread, r)
    assert thread.submitted == [r]
    r.on_chunk("a")
    assert next(stream) == "a"
    r.on_chunk("b")
    r.on_chunk("c")
    r.future.set_result("all")
    assert list(stream) == ["b", "c"] and list(stream) == []
    del stream
    assert thread.cancelled == []


def test_an_error_comes_behind_the_chunks(made):
    stream, thread, r = made
    r.on_chunk("a")
    r.future.set_exception(ValueError("gone wrong"))
    assert next(stream) == "a"
    with pytest.raises(ValueError, match="gone wrong"):
        next(stream)
    assert list(stream) == [] and thread.cancelled == [r]


def test_an_interrupt_cancels(made, monkeypatch):
    class Interrupted(queue.SimpleQueue):
        def get(self):
            raise KeyboardInterrupt

    stream, thread, r = made
    monkeypatch.setattr(stream, "_chunks", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert thread.cancelled == [r] and list(stream) == []


def test_nothing_comes_in_another_process(made):
    stream, thread, r = made
    r.on_chunk("a")
    thread.error = EngineClosedError("elsewhere")
    with pytest.raises(EngineClosedError, match="elsewhere"):
        next(stream)

    async def run():
        with pytest.raises(EngineClosedError, match="elsewhere"):
            await anext(AsyncChunkStream(thread, r))

    asyncio.run(run())


@pytest.mark.parametrize("way", ("close", "block", "forget"))
def test_who_goes_early_cancels(way):
    thread, r = Thread(), request(5, 8)
    stream = ChunkStream(thread, r)
    if way == "close":
        stream.close()
        assert list(stream) == []
    elif way == "block":
        with stream as inside:
            assert inside is stream and thread.cancelled == []
    else:
        del stream
    assert thread.cancelled == [r]


def ends_of(stream, count, end) -> list:
    """What so many threads get that wait for a stream until end() ends it."""
    with ThreadPoolExecutor(count) as pool:
        lists = [pool.submit(lambda: list(stream)) for _ in range(count)]
        wait(lists, 0.05)
        end()
        return [found.result() for found in lists]


def test_all_who_wait_for_the_end_see_it(made):
    stream, thread, r = made
    assert ends_of(stream, 2, lambda: r.future.set_result("all")) == [[], []] and thread.cancelled == []


def test_closed_by_another_thread(made):
    stream, thread, r = made
    end = lambda: (stream.close(), r.future.set_exception(CancelledError()))  # noqa: E731
    assert ends_of(stream, 2, end) == [[], []] and thread.cancelled == [r]


@pytest.mark.parametrize("closed", (True, False))
def test_all_tasks_that_wait_for_the_end_see_it(closed):
    thread, r = Thread(), request(5, 8)

    async def run():
        stream = AsyncChunkStream(thread, r)

        async def all_of_it():
            return [chunk async for chunk in stream]

        tasks = [asyncio.ensure_future(all_of_it()) for _ in range(2)]
        await asyncio.sleep(0)
        if closed:
            await stream.aclose()
            r.future.set_exception(CancelledError())
        else:
            r.future.set_result("all")
        assert await asyncio.gather(*tasks) == [[], []]

    asyncio.run(run())
    assert thread.cancelled == [r] * closed


def test_on_an_event_loop():
    thread, r = Thread(), request(5, 8)

    async def run():
        stream = AsyncChunkStream(thread, r)
        assert thread.submitted == [r]
        r.on_chunk("a")
        assert await anext(stream) == "a"
        threading.Thread(target=lambda: (r.on_chunk("b"), r.future.set_result("all"))).start()
        assert [chunk async for chunk in stream] == ["b"] and [chunk async for chunk in stream] == []

    asyncio.run(run())
    assert thread.cancelled == []
    r.on_chunk("late")  # the event loop is closed


def test_without_an_event_loop(monkeypatch):
    """The error is the only one: there is nothing to cancel."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncChunkStream(Thread(), request(5, 8))
    gc.collect()
    assert unraisable == []


def test_an_error_on_an_event_loop():
    thread, r = Thread(), request(5, 8)

    async def run():
        stream = AsyncChunkStream(thread, r)
        r.future.set_exception(ValueError("gone wrong"))
        with pytest.raises(ValueError, match="gone wrong"):
            await anext(stream)
        assert [chunk async for chunk in stream] == []

    asyncio.run(run())
    assert thread.cancelled == [r]


@pytest.mark.parametrize("way", ("close", "block", "forget", "cancel"))
def test_who_goes_early_on_an_event_loop_cancels(way):
    thread, r = Thread(), request(5, 8)

    async def run():
        stream = AsyncChunkStream(thread, r)
        if way == "close":
            await stream.aclose()
            assert [chunk async for chunk in stream] == []
        elif way == "block":
            async with stream as inside:
                assert inside is stream and thread.cancelled == []
        elif way == "cancel":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)
        del stream
        assert thread.cancelled[:1] == [r]

    asyncio.run(run())


def test_a_request_that_takes_long_is_made_on_a_thread_with_the_first_chunk():
    thread, r, makers = Thread(), request(5, 8), []

    def make():
        makers.append(threading.current_thread())
        r.future.set_result("all")
        return r

    async def run():
        unread, stream = AsyncChunkStream(thread, make), AsyncChunkStream(thread, make)
        await unread.aclose()
        assert [chunk async for chunk in unread] == makers == thread.submitted == []
        assert [chunk async for chunk in stream] == []

    asyncio.run(run())
    assert thread.submitted == [r] and thread.cancelled == []
    assert len(makers) == 1 and makers[0] is not threading.current_thread()


def test_closed_while_the_request_is_made():
    thread = Thread()

    async def run():
        def make():
            asyncio.run_coroutine_threadsafe(stream.aclose(), loop).result()
            return request(5, 8)

        loop, stream = asyncio.get_running_loop(), AsyncChunkStream(thread, make)
        assert [chunk async for chunk in stream] == []

    asyncio.run(run())
    assert thread.submitted == thread.cancelled == []
