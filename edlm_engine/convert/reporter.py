"""How a training run tells how it goes: loss, tokens/s, and the time left."""

from __future__ import annotations

import sys
import time

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from edlm_engine.convert.config import TrainConfig
from edlm_engine.printing import is_terminal

LINE_EVERY_S = 10.0
BAR_EVERY_S = 0.5


class Reporter:
    """A progress bar on a terminal; elsewhere a line after the first step, then one every ten seconds, and
    one after the last step.

    first: the step that the run begins behind. Loss and tokens/s are of the steps since the last report.
    """

    def __init__(self, title: str, first: int, config: TrainConfig):
        self.title, self.config, self.first = title, config, first
        self.losses: list[float] = []
        self.since = self.start = time.perf_counter()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, disable=not is_terminal(sys.stdout))
        self.task = self.bar.add_task(title, total=config.steps, completed=first, note="")

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def __call__(self, step: int, loss: float) -> None:
        """Take note of the loss of a step, counted from 1."""
        self.losses.append(loss)
        now = time.perf_counter()
        pause = LINE_EVERY_S if self.bar.disable else BAR_EVERY_S
        if now - self.since < pause and step not in (self.first + 1, self.config.steps):
            return
        tokens = len(self.losses) * self.config.rows * self.config.length
        seconds = max(now - self.since, 1e-9)
        note = f"loss {sum(self.losses) / len(self.losses):.4f}  {tokens / seconds:,.0f} tokens/s"
        if self.bar.disable:
            left = (now - self.start) / (step - self.first) * (self.config.steps - step)
            print(
                f"{self.title} step {step}/{self.config.steps}  {note}  {now - self.start:,.0f} s, "
                f"about {left:,.0f} s left",
                flush=True,
            )
        self.bar.update(self.task, completed=step, note=note)
        self.losses, self.since = [], now
