"""Ctrl-C as a request to stop between two steps, when the state can be saved."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading


class Interrupt:
    """Inside of `with`, the first Ctrl-C sets `asked` and a second one acts as ever (KeyboardInterrupt).

    Python lets the main thread alone handle signals; in other threads `asked` stays False.
    """

    def __init__(self):
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._before = signal.getsignal(signal.SIGINT)
        # Whoever ignores the signal, or handles it without Python (None), is left alone.
        self._ours = threading.current_thread() is threading.main_thread() and callable(self._before)
        if self._ours:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)
        # The signal may have come in the middle of another write.
        with contextlib.suppress(RuntimeError, OSError, AttributeError):
            sys.stderr.write("\nfinishing this step, then saving; Ctrl-C once more stops at once\n")
