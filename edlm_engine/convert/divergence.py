"""Telling a training run that has gone wrong, and what to try then."""

from __future__ import annotations

import math
from collections import deque

from edlm_engine.convert.config import TrainConfig

WINDOW = 20  # steps over which losses are averaged: a single one may be large
HOPELESS = 4  # times the loss of guessing


class Divergence:
    """Raises FloatingPointError, whose message says step, rate and remedy, for a loss or a gradient that is
    not finite, and once the losses are far above both the first one and `guessing` (what a model loses that
    gives every token the same chance)."""

    def __init__(self, config: TrainConfig, guessing: float = math.inf):
        self.config, self.guessing = config, guessing
        self.first: float | None = None
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def check_loss(self, loss: float, step: int, share: float) -> None:
        """`share`: of the peak rates, in this step."""
        if not math.isfinite(loss):
            raise self._error(f"the loss is {loss}", step, share)
        self.first = loss if self.first is None else self.first
        self.losses.append(loss)
        mean = sum(self.losses) / WINDOW
        if mean > max(HOPELESS * self.guessing, 2 * self.first):
            found = f"the loss is {mean:.4g} on average, after {self.first:.4g} in the first step"
            raise self._error(found, step, share)

    def check_gradient(self, norm: float, step: int, share: float) -> None:
        if not math.isfinite(norm):
            raise self._error(f"the gradient's norm is {norm}", step, share)

    def _error(self, what: str, step: int, share: float) -> FloatingPointError:
        config = self.config
        rates = f"learning_rate {config.learning_rate * share:.3g}"
        if config.optimizer == "muon":
            rates += f", muon_learning_rate {config.muon_learning_rate * share:.3g}"
        return FloatingPointError(
            f"training diverged: {what}, in step {step + 1} of {config.steps} at {rates}; try a tenth of "
            "that rate, or more warmup_steps. If the first step fails already, look for NaN in the weights"
        )
