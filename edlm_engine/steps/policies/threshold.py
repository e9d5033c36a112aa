"""Commit what is sure enough: the confidence threshold of Efficient-DLM (arXiv 2512.14067, App. A)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .order import take_prefix
from .policy import Statistics, as_float32, settle


@dataclass(frozen=True, slots=True)
class Threshold:
    """Every open position whose confidence is at least `threshold`, in (0, 1], and always the surest.

    max_steps: denoising steps of a block; the last of them commits whatever is left. None: no bound.
    """

    threshold: float = 0.9
    max_steps: int | None = None
    rule: ClassVar[str] = "threshold"
    wants: ClassVar[str] = "open"
    to_tune: ClassVar[tuple[float, ...]] = (0.8, 0.9, 0.95, 0.99)

    def __post_init__(self):
        settle(self, "threshold", 0, 1, open_low=True)
        if self.max_steps is not None:
            settle(self, "max_steps", 1, integer=True)

    def parameters(self) -> tuple[float, ...]:
        return self.threshold, math.inf if self.max_steps is None else self.max_steps

    def select(self, open: Tensor, stats: Statistics) -> Tensor:
        threshold = as_float32(self.threshold)
        last = stats.step + 1 >= (math.inf if self.max_steps is None else self.max_steps)
        return take_prefix(open, stats.p_chosen, lambda key, _, __: (key >= threshold) | last[:, None])
