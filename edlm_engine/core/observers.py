"""Moments of a step, for whoever looks on: times, counts, profiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

MOMENTS = {
    "step": "the stepping thread works: a step that the host leads, or a run that the device leads",
    "layout": "the host lays out the next forward",
    "forward": "the model computes (on a GPU: is queued)",
    "commit": "statistics, and tokens committed by them (on a GPU: are queued)",
    "wait": "the host waits for the device",
    "read": "what a step has left becomes texts, chunks and results",
}


class Observer(Protocol):
    """Is told, on the stepping thread, when each of MOMENTS begins and ends. A moment under way when the
    observer comes has an end without a beginning. What it raises is the engine's own failure."""

    def begin(self, moment: str) -> None: ...

    def end(self, moment: str) -> None: ...


class Observers:
    """Any number of observers, which come and go while the engine works."""

    def __init__(self):
        self._attached: tuple[Observer, ...] = ()

    def begin(self, moment: str):
        for observer in self._attached:
            observer.begin(moment)

    def end(self, moment: str):
        for observer in self._attached:
            observer.end(moment)

    @contextmanager
    def attached(self, observer: Observer) -> Iterator[Observer]:
        """Tell `observer`, too, until the block ends."""
        self._attached = (*self._attached, observer)
        try:
            yield observer
        finally:
            self._attached = tuple(other for other in self._attached if other is not observer)
