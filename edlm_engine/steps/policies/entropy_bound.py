"""Commit what is jointly sure: the entropy-bounded sampler (arXiv 2505.24857)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .order import take_prefix
from .policy import Statistics, as_float32, settle


@dataclass(frozen=True, slots=True)
class EntropyBound:
    """The open positions in order of their entropy, while the entropies of those before (nats) sum to at most
    `gamma`: it bounds the error of taking them as independent of each other."""

    gamma: float
    rule: ClassVar[str] = "entropy_bound"
    wants: ClassVar[str] = "open"
    to_tune: ClassVar[tuple[float, ...]] = (0.05, 0.1, 0.2, 0.4, 0.8)

    def __post_init__(self):
        settle(self, "gamma", 0)

    def parameters(self) -> tuple[float, ...]:
        return (self.gamma,)

    def select(self, open: Tensor, stats: Statistics) -> Tensor:
        gamma = as_float32(self.gamma)
        return take_prefix(open, -stats.entropy, lambda _, before, __: -before <= gamma)
