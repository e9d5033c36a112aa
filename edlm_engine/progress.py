"""Progress bars on a terminal, silence elsewhere."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .printing import is_terminal, printable

if TYPE_CHECKING:
    from rich.progress import Progress


def _bar() -> "Progress":
    # where it is needed only: its import draws from the program's `random`
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    return Progress(*columns, console=Console(file=sys.stderr), transient=True)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A function that advances the bar by one; the bar shows on stderr if that is a terminal."""
    if not is_terminal(sys.stderr):
        yield lambda: None
        return
    with _bar() as bar:
        task = bar.add_task(printable(description), total=total)
        yield lambda: bar.advance(task)


def track(futures: list[Future], *, enabled: bool) -> Iterator[Future]:
    """The futures as they complete, with a progress bar if enabled."""
    if not enabled:
        yield from as_completed(futures)
        return
    with progress_bar("generating", len(futures)) as tick:
        for future in as_completed(futures):
            tick()
            yield future
