"""Commit a fixed number of positions per step: the schedule of LLaDA (arXiv 2502.09992)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .order import take_prefix
from .policy import Statistics, settle


@dataclass(frozen=True, slots=True)
class Schedule:
    """`steps` denoising steps of a block of m positions to fill: each commits the surest floor(m / steps),
    the first m mod steps one more. None, and more than m: one token per step.
    """

    steps: int | None = None
    rule: ClassVar[str] = "schedule"
    wants: ClassVar[str] = "open"
    to_tune: ClassVar[tuple[float, ...]] = (2, 4, 8)

    def __post_init__(self):
        if self.steps is not None:
            settle(self, "steps", 1, integer=True)

    def parameters(self) -> tuple[float, ...]:
        return (math.inf if self.steps is None else self.steps,)

    def select(self, open: Tensor, stats: Statistics) -> Tensor:
        m = stats.to_fill
        steps = m.clamp(min=1) if self.steps is None else m.clamp(1, self.steps)
        count = m // steps + (stats.step < m % steps)
        return take_prefix(open, stats.p_chosen, lambda _, __, rank: rank < count[:, None])
