"""What a policy is, and what it sees."""

import math
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol

import torch
from torch import Tensor

from ...errors import shown


@dataclass(frozen=True, slots=True)
class Statistics:
    """The wanted positions of some blocks in one denoising step, under the raw logits in fp32.

    p_argmax, p_second, entropy (nats), log_sum_exp, p_chosen (the confidence): float32 [blocks, positions],
    NaN where a position is not wanted. step: int64 [blocks], denoising steps done; to_fill: int64 [blocks],
    positions of the block that were not given.
    """

    p_argmax: Tensor
    p_second: Tensor
    entropy: Tensor
    log_sum_exp: Tensor
    p_chosen: Tensor
    step: Tensor
    to_fill: Tensor


class Policy(Protocol):
    """A commit rule with its numbers: a frozen dataclass."""

    @property  # as it is read: a class variable will do
    def rule(self) -> str | None:
        """Its native rule, a key of ops.RULES; None: select() runs, and the host leads."""
        ...

    @property
    def wants(self) -> str:
        """ "open": statistics of open positions; "all": of committed ones, too."""
        ...

    def parameters(self) -> tuple[float, ...]:
        """The numbers of the native rule, at most four."""
        ...

    def select(self, open: Tensor, stats: Statistics) -> Tensor:
        """bool [blocks, positions]: what to commit, among the positions of `open`, which is of that shape.
        Where it is nothing, the kernel commits the most confident one."""
        ...


def number(name, value, low, high=math.inf, *, integer=False, open_low=False, hint="") -> int | float:
    """A number that a user gave as a plain one: those of numpy wrap around in sums. Raises ValueError with
    its name and the interval."""
    plain = None
    if isinstance(value, Integral if integer else Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            plain = int(value) if integer else float(value)
    if plain is None or not (integer or math.isfinite(plain)):
        found = shown(value)
        raise ValueError(f"{name} must be {'an integer' if integer else 'a finite number'}, got {found}")
    if value < low or value > high or (open_low and value == low):
        interval = f"{'(' if open_low else '['}{low}, {high}{']' if math.isfinite(high) else ')'}"
        raise ValueError(f"{name} must be in {interval}, got {shown(value)}{hint}")
    return plain


def settle(self, name: str, *interval, **options):
    """Check a field of a frozen dataclass with number(), and store the plain number."""
    object.__setattr__(self, name, number(name, getattr(self, name), *interval, **options))


def as_float32(value: float) -> float:
    """The float32 number that the kernels compare with."""
    return torch.tensor(value, dtype=torch.float32, device="cpu").item()
