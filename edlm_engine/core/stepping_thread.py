"""The one thread that steps the engine; callers hand it requests and wait for their futures."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import asdict
from typing import Protocol

import torch

from ..errors import EngineBusyError, EngineClosedError, shown
from ..hardware.machine import default_threads
from ..hardware.openmp import set_threads
from ..steps.kv_cache import PAGE_LENGTH
from .observers import Observers
from .requests import Request
from .runner import Runner
from .scheduler import Scheduler
from .statistics import EngineStats

_log = logging.getLogger("edlm_engine")


class Leader(Protocol):
    """Something beside this thread that leads from step to step: device_led.RunAhead."""

    stepping: str

    def run(self, interrupted: Callable[[], bool]) -> None:
        """Run all sequences until none is left or interrupted(), which is asked between two steps."""


class SteppingThread:
    """Owns the scheduler and the runner: nothing else touches them once the thread runs.

    The thread starts with the first request and sleeps while there is nothing to do. leader: takes over
    whenever the host need not lead; without it the host leads every step. max_waiting: requests that may
    wait beside those that have a slot; None: any number.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        num_threads: int | None,
        leader: Leader | None = None,
        observers: Observers | None = None,
        max_waiting: int | None = None,
    ) -> None:
        self._scheduler, self._runner, self._leader = scheduler, runner, leader
        self.observers = observers or Observers()
        # torch hands the last setting of any thread to new ones: without a number of its own, one engine's
        # thread would take over another engine's
        self.num_threads = num_threads or min(torch.get_num_threads(), default_threads())
        self._inbox: deque[Request] = deque()
        self._unfinished: set[Future] = set()
        self._wake = threading.Condition()
        self._closed = False
        self._broken: BaseException | None = None
        self._max_waiting = max_waiting
        self._thread: threading.Thread | None = None
        self._pid: int | None = None  # of the process that starts it

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    @property
    def _in_child(self) -> bool:
        """Whether this process was forked from the one that runs the thread. Threads do not survive a fork,
        and locks stay as they were: whoever asked the thread for something would wait forever."""
        return self._pid is not None and self._pid != os.getpid()

    @property
    def stepping(self) -> str:
        return self._leader.stepping if self._leader else "eager"

    def describe(self) -> str:
        """In a few words what it is at."""
        if self._in_child:
            return "of another process"
        if self._broken is not None:
            return "broken down"
        stats = self.stats()
        return "closed" if self._closed else f"{stats.running} running, {stats.waiting} waiting"

    def submit(self, *requests: Request):
        """Hand requests over, all before the next step. Raises EngineClosedError after close(), where the
        thread has broken down, and in a process forked from the one that runs it; EngineBusyError if more
        would wait than may."""
        self._check_alive()
        if self._pid is None and requests:
            self._pid = os.getpid()  # before the lock, which a process forked just now finds as it is
        with self._wake:
            self._check_alive()
            self._check_room(len(requests))
            if self._thread is None and requests:
                thread = threading.Thread(target=self._run, name="edlm-engine", daemon=True)
                thread.start()  # may fail: then the next request tries again
                self._thread = thread
            for request in requests:
                self._unfinished.add(request.future)
                request.future.add_done_callback(self._unfinished.discard)
            self._inbox.extend(requests)
            self._wake.notify()

    def check_process(self) -> None:
        """Raise EngineClosedError in a process forked from the one that runs the thread: nothing comes from
        it there."""
        if self._in_child:
            raise EngineClosedError(
                "the engine's thread is of another process; create the Engine after forking"
            )

    def _check_alive(self):
        self.check_process()
        if self._broken is not None:
            raise EngineClosedError(f"{_broken_down(self._broken)}; create a new one") from self._broken
        if self._closed:
            raise EngineClosedError("the engine is closed")

    def _check_room(self, count: int):
        """Raise EngineBusyError if so many more requests would make too many wait."""
        if self._max_waiting is None:
            return
        scheduler = self._scheduler
        waiting = len(self._inbox) + len(scheduler.waiting)
        # Behind one that waits already all have to: there is no slot, or no room in the cache.
        free = 0 if scheduler.waiting else scheduler.slots - len(scheduler.running)
        if waiting + count - free > self._max_waiting:
            raise EngineBusyError(
                f"{count} more request{'s' * (count > 1)} would make {waiting + count - free} wait; "
                f"max_waiting is {self._max_waiting}; try again later"
            )

    def stats(self) -> EngineStats:
        """What the engine does and has done. Raises EngineClosedError in a process forked from its own."""
        self.check_process()
        scheduler, counters = self._scheduler, self._scheduler.counters
        with self._wake:
            return EngineStats(
                running=len(scheduler.running),
                waiting=len(scheduler.waiting) + len(self._inbox),
                pages=scheduler.cache.num_pages,
                free_pages=scheduler.cache.free_pages,
                page_tokens=PAGE_LENGTH,
                **asdict(counters),
            )

    def cancel(self, request: Request):
        """Let the request leave before the next step; harmless when it has ended."""
        request.cancelled = True
        if not self._in_child:
            with self._wake:
                self._wake.notify()

    def close(self) -> None:
        """Stop after the step under way; requests that have not ended get EngineClosedError."""
        if self._in_child:
            return
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self):
        try:
            set_threads(self.num_threads)
            device = self._runner.state.records.device
            if device.type == "cuda":
                torch.cuda.set_device(device)
            with torch.inference_mode():
                while self._collect():
                    self._step_or_fail()
        except BaseException as error:  # whatever ends the thread, nobody must wait for it in vain
            try:
                _log.exception("the stepping thread has broken down")
            finally:  # a handler of the program may raise
                self._end(error)
        else:
            self._end(None)

    def _step_or_fail(self):
        try:
            self.observers.begin("step")
            self._step()
            self.observers.end("step")
        except Exception as error:  # a defect must reach the callers and leave the engine usable
            self._fail_step(error)

    def _fail_step(self, error: Exception):
        """Let all that run end with the error; if none does, those who wait, as they cannot begin."""
        scheduler = self._scheduler
        running = list(scheduler.running)
        try:
            count = len(running) or len(scheduler.waiting)
            _log.exception("a step failed, and with it %d requests", count)
        finally:  # a handler of the program may raise
            for sequence in running:
                scheduler.fail(sequence, error)
            if not running:
                scheduler.fail_all(error)

    def _end(self, error: BaseException | None):
        """Let every request that has come or comes end with an error."""
        reason = EngineClosedError(
            "the engine was closed before the request finished" if error is None else _broken_down(error)
        )
        reason.__cause__ = error
        try:
            with self._wake:
                self._closed, self._broken = True, error
                self._take_inbox()
            self._scheduler.fail_all(reason)
        finally:  # it may be the scheduler that has broken down, and lost some
            for future in self._unfinished.copy():
                with suppress(InvalidStateError):
                    future.set_exception(reason)

    def _collect(self) -> bool:
        """Wait for work and take what has come in; False once closed."""
        scheduler = self._scheduler
        with self._wake:
            while not (self._closed or self._inbox or scheduler.waiting or scheduler.running):
                self._wake.wait()
            self._take_inbox()
            return not self._closed

    def _take_inbox(self):
        while self._inbox:
            self._scheduler.add(self._inbox.popleft())

    def _step(self):
        scheduler = self._scheduler
        scheduler.drop_ended()
        scheduler.admit()
        if not scheduler.running:
            return
        if self._leader is not None and not scheduler.host_must_lead:
            self._leader.run(self._interrupted)
            return
        self.observers.begin("layout")
        plan = scheduler.plan()
        scheduler.begin(plan)
        inputs = scheduler.lay_out(plan)
        self.observers.end("layout")
        self._runner.step(inputs, plan.selecting())
        scheduler.finish(plan)

    def _interrupted(self) -> bool:
        """Whether there is something to do that only happens between two steps of the host's own."""
        with self._wake:
            self._take_inbox()
            return self._closed or self._scheduler.can_admit


def _broken_down(error: BaseException) -> str:
    return f"the engine has broken down: {type(error).__name__}: {shown(str(error))[1:-1]}"
