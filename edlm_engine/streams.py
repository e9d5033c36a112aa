"""Chunks of a request, as an iterator and as an asynchronous one."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress

from .core.requests import Request
from .core.stepping_thread import SteppingThread
from .outputs import Chunk, Generation

Item = Chunk | Future[Generation]  # a step, or the end


class ChunkStream(Iterator[Chunk]):
    """The chunks of a request that has begun. Closing it, leaving its `with` block or forgetting it cancels
    the request."""

    def __init__(self, loop: SteppingThread, request: Request) -> None:
        self._chunks: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._loop, self._request, self._ended = loop, request, False
        request.on_chunk = self._chunks.put
        loop.submit(request)
        request.future.add_done_callback(self._chunks.put)

    def __next__(self) -> Chunk:
        if self._ended:
            raise StopIteration
        try:
            self._loop.check_process()
            item = self._chunks.get()
            if not isinstance(item, Future):
                return item
            self._chunks.put(item)  # another thread may wait for the end, too
            if not self._ended:  # else it was closed meanwhile
                item.result()  # raises what ended the request early
        except BaseException:  # an interrupt must not leave the request running
            self.close()
            raise
        self._ended = True
        raise StopIteration

    def close(self) -> None:
        """Cancel the request; harmless when it has ended."""
        self._ended = True
        self._loop.cancel(self._request)

    def __enter__(self) -> "ChunkStream":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self.close()


class AsyncChunkStream(AsyncIterator[Chunk]):
    """The chunks of a request on an event loop. Closing it, leaving its `async with` block or forgetting it
    cancels the request."""

    def __init__(self, loop: SteppingThread, request: Request | Callable[[], Request]) -> None:
        """request: as a function if it takes long to make; then it is made on a thread, and begins with the
        first chunk asked for."""
        self._event_loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[Item] = asyncio.Queue()
        self._loop, self._ended = loop, False
        self._request: Request | None = None
        self._make = None if isinstance(request, Request) else request
        if isinstance(request, Request):
            self._begin(request)

    def _begin(self, request: Request) -> None:
        event_loop, chunks = self._event_loop, self._chunks

        def put(item: Item) -> None:
            # holds no reference to the stream: one that is forgotten must be cancelled
            with suppress(RuntimeError):  # the event loop may be closed before the engine notices
                event_loop.call_soon_threadsafe(chunks.put_nowait, item)

        request.on_chunk = put
        self._loop.submit(request)
        self._request = request
        request.future.add_done_callback(put)

    async def __anext__(self) -> Chunk:
        if self._ended:
            raise StopAsyncIteration
        try:
            self._loop.check_process()
            if self._make is not None:
                make, self._make = self._make, None
                request = await asyncio.to_thread(make)
                if self._ended:  # closed meanwhile
                    raise StopAsyncIteration
                self._begin(request)
            item = await self._chunks.get()
            if not isinstance(item, Future):
                return item
            self._chunks.put_nowait(item)  # another task may wait for the end, too
            if not self._ended:  # else it was closed meanwhile
                item.result()
        except BaseException:
            await self.aclose()
            raise
        self._ended = True
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the request; harmless when it has ended."""
        self._close()

    def _close(self) -> None:
        self._ended = True
        if self._request is not None:
            self._loop.cancel(self._request)

    async def __aenter__(self) -> "AsyncChunkStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self._close()
