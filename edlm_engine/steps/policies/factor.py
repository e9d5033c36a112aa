"""Commit n positions where the n-th is sure enough for n: Fast-dLLM's factor (arXiv 2505.22618)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .order import take_prefix
from .policy import Statistics, as_float32, settle


@dataclass(frozen=True, slots=True)
class Factor:
    """The n most confident open positions, for the largest n with (n + 1) (1 - c_n) < factor, c_n being the
    n-th confidence; and always the surest."""

    factor: float
    rule: ClassVar[str] = "factor"
    wants: ClassVar[str] = "open"
    to_tune: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0, 2.0)

    def __post_init__(self):
        settle(self, "factor", 0)

    def parameters(self) -> tuple[float, ...]:
        return (self.factor,)

    def select(self, open: Tensor, stats: Statistics) -> Tensor:
        factor = as_float32(self.factor)
        return take_prefix(open, stats.p_chosen, lambda key, _, rank: (rank + 2) * (1 - key) < factor)
