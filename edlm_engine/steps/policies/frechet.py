"""Commit while the joint probability is surely high: Fast-dLLM++'s Fréchet profile (arXiv 2606.02955)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .order import take_prefix
from .policy import Statistics, as_float32, settle


@dataclass(frozen=True, slots=True)
class Frechet:
    """The n most confident open positions, for the largest n at which L_n - U_n > delta; always the surest.
    L_n = c_1 + … + c_n - (n - 1) is the least that their joint probability can be; U_n = 1 - c_n bounds
    that of any other choice."""

    delta: float
    rule: ClassVar[str] = "frechet"
    wants: ClassVar[str] = "open"
    to_tune: ClassVar[tuple[float, ...]] = (0.0, 0.25, 0.5, 0.75)

    def __post_init__(self):
        settle(self, "delta", -1, 1)

    def parameters(self) -> tuple[float, ...]:
        return (self.delta,)

    def select(self, open: Tensor, stats: Statistics) -> Tensor:
        delta = as_float32(self.delta)
        return take_prefix(
            open, stats.p_chosen, lambda key, before, rank: before + key - rank - (1 - key) > delta
        )
