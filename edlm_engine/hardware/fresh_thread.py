"""Work on a thread that is new."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch


def on_fresh_thread(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), on a thread of its own, whose result or exception the caller gets.

    A process forked from one whose threads ran parallel torch ops hangs in the first such op of the
    same thread: OpenMP believes in helpers that the fork did not take along. A new thread gets new ones. And
    what the caller's thread has set (a default device, inference mode) does not reach there, but for
    its current GPU.
    """
    future: Future[Any] = Future()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def work() -> None:
        try:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="edlm-engine-load", daemon=True).start()
    return future.result()
