"""Rotary position embeddings, and how their frequencies are scaled for texts longer than the pretraining's.

RoFormer (arXiv 2104.09864, eq. 34); the pairs that rotate together are the two halves of a head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): every frequency is divided by the same factor."""

    factor: float

    @property
    def amplitude(self) -> float:
        return 1.0

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1: what turns fewer than low_freq_factor times within the pretraining's positions is divided by
    the factor, what turns more than high_freq_factor times is kept, and what lies between is blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int

    @property
    def amplitude(self) -> float:
        return 1.0

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        turns = frequencies * (self.original_positions / (2 * math.pi))
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * kept + frequencies / self.factor * (1 - kept)


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071, §3.2): a ramp over the pairs of a head from kept to divided frequencies,
    between those that turn beta_fast and beta_slow times within the pretraining's positions; and an amplitude
    of cosines and sines. truncate: the ramp's ends are whole pairs."""

    factor: float
    original_positions: int
    amplitude: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        pairs = len(frequencies)

        def pair_that_turns(times: float) -> float:
            return pairs * math.log(self.original_positions / (times * 2 * math.pi)) / math.log(theta)

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        pair = torch.arange(pairs, dtype=torch.float32, device="cpu")
        divided = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
        return frequencies * (1 - divided) + frequencies / self.factor * divided


@dataclass(frozen=True, slots=True)
class Rope:
    """theta: the base of the frequencies; scaling: how they are scaled (None: not at all)."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return self.scaling.amplitude if self.scaling else 1.0

    def frequencies(self, head_dim: int) -> Tensor:
        """fp32 [head_dim / 2]: radians that each pair of a head turns from one position to the next."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        frequencies: Tensor = self.theta**-exponent
        return self.scaling.scale(frequencies, self.theta) if self.scaling else frequencies
