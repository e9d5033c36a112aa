"""Commit what has no close rival: the margin of the best token over the second."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .order import take_prefix
from .policy import Statistics, as_float32, settle


@dataclass(frozen=True, slots=True)
class Margin:
    """Every open position whose best token is ahead of the second by at least `threshold`, in (0, 1], in
    probability, and always the one that is furthest ahead."""

    threshold: float
    rule: ClassVar[str] = "margin"
    wants: ClassVar[str] = "open"
    to_tune: ClassVar[tuple[float, ...]] = (0.5, 0.7, 0.9, 0.97)

    def __post_init__(self):
        settle(self, "threshold", 0, 1, open_low=True)

    def parameters(self) -> tuple[float, ...]:
        return (self.threshold,)

    def select(self, open: Tensor, stats: Statistics) -> Tensor:
        threshold = as_float32(self.threshold)
        return take_prefix(open, stats.p_argmax - stats.p_second, lambda key, _, __: key >= threshold)
