"""Looking into a running engine: what tests of cancellation, failure and lifetime share."""

import time
from concurrent.futures import CancelledError


def eventually(condition, seconds=20.0):
    """Wait for what another thread is about to do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.002)


def idle(engine) -> bool:
    """Nothing runs or waits, and every page is free."""
    scheduler = engine._loop._scheduler
    cache = scheduler.cache
    return not scheduler.running and not scheduler.waiting and len(cache._free_pages) == cache.num_pages


def running_request(engine):
    """The request that the engine has begun, or is about to begin."""
    scheduler = engine._loop._scheduler
    eventually(lambda: scheduler.running)
    return scheduler.running[0].request


def assert_dropped(engine, request):
    """The request ended before its end, and left nothing behind."""
    assert isinstance(request.future.exception(timeout=20), CancelledError)
    eventually(lambda: idle(engine))


def slow_down(engine, seconds=0.004):
    """Makes every step take a while, so that a request is surely still running when the test comes to it."""
    commit = engine._loop._runner._commit
    engine._loop._runner._commit = lambda *inputs: (time.sleep(seconds), commit(*inputs))


def ids(results):
    """The tokens of what generate() returns, in the same shape."""
    return [ids(result) for result in results] if isinstance(results, list) else results.token_ids
