"""The one thread that steps the engine; callers hand it requests and wait for their futures."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

from ..errors import EngineClosedError
from ..hardware.machine import default_threads
from .observers import Observers
from .requests import Request
from .runner import Runner
from .scheduler import Scheduler


class Leader(Protocol):
    """Something beside this thread that leads from step to step: device_led.RunAhead."""

    stepping: str

    def run(self, interrupted: Callable[[], bool]) -> None:
        """Run all sequences until none is left or interrupted(), which is asked between two steps."""


class SteppingThread:
    """Owns the scheduler and the runner: nothing else touches them once the thread runs.

    The thread starts with the first request and sleeps while there is nothing to do. leader: takes over
    whenever the host need not lead; without it the host leads every step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        num_threads: int | None,
        leader: Leader | None = None,
        observers: Observers | None = None,
    ):
        self._scheduler, self._runner, self._leader = scheduler, runner, leader
        self.observers = observers or Observers()
        # torch hands the last setting of any thread to new ones: without a number of its own, one engine's
        # thread would take over another engine's
        self.num_threads = num_threads or min(torch.get_num_threads(), default_threads())
        self._inbox: deque[Request] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def stepping(self) -> str:
        return self._leader.stepping if self._leader else "eager"

    def submit(self, *requests: Request):
        """Hand over requests, which begin in the same step if there is room."""
        with self._wake:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edlm-engine", daemon=True)
                self._thread.start()
            elif not self._thread.is_alive():  # threads do not survive a fork: the caller would wait forever
                raise EngineClosedError(
                    "the engine's thread is of another process; create the Engine after forking"
                )
            self._inbox.extend(requests)
            self._wake.notify()

    def cancel(self, request: Request):
        """Let the request leave before the next step; harmless when it has ended."""
        with self._wake:
            request.cancelled = True
            self._wake.notify()

    def close(self):
        """Stop after the step under way; requests that have not ended get EngineClosedError."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self):
        torch.set_num_threads(self.num_threads)  # OpenMP keeps this per calling thread
        with torch.inference_mode():
            while self._collect():
                try:
                    self.observers.begin("step")
                    self._step()
                    self.observers.end("step")
                except Exception as error:  # a defect must reach the callers and leave the engine usable
                    for sequence in list(self._scheduler.running):
                        self._scheduler.fail(sequence, error)
        self._abandon()

    def _collect(self) -> bool:
        """Wait for work and take what has come in; False once closed."""
        scheduler = self._scheduler
        with self._wake:
            while not (self._closed or self._inbox or scheduler.waiting or scheduler.running):
                self._wake.wait()
            self._take_inbox()
            return not self._closed

    def _take_inbox(self):
        self._scheduler.waiting.extend(self._inbox)
        self._inbox.clear()

    def _step(self):
        scheduler = self._scheduler
        scheduler.drop_cancelled()
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

    def _abandon(self):
        error = EngineClosedError("the engine was closed before the request finished")
        for sequence in list(self._scheduler.running):
            self._scheduler.fail(sequence, error)
        for request in self._scheduler.waiting:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)
        self._scheduler.waiting.clear()
