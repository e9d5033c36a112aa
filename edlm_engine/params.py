"""What one request may choose."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from .steps.policies import Policy, Schedule, Threshold, parse
from .steps.policies.policy import number

DEFAULT_THRESHOLD = 0.9
MAX_TEMPERATURE = 1e4  # far beyond use; keeps the fp32 quotient of logits and temperature sound


def _items(name, value) -> tuple:
    if not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a sequence, got {value!r}")
    return tuple(value)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is decoded.

    max_new_tokens: most tokens to generate; the last block is cut to what is left of it.
    policy: which of the open positions a denoising step commits, one of edlm_engine.policies or its text form
        ("entropy_bound:0.15"). None: what the next two say.
    threshold, steps_per_block: the short forms of Threshold(threshold, max_steps=steps_per_block) and, with
        threshold None, of Schedule(steps_per_block).
    block_length: positions that are denoised together; None: the engine's, which is also the most.
    temperature: 0 is greedy. Above, tokens are drawn by Gumbel-max, argmax(logits / T + g).
    top_k, top_p: restrict what is drawn at temperature > 0 (0 and 1.0: no restriction).
    seed: keys the random numbers, with the absolute position and the step; None draws a fresh seed.
    stop: strings that end the text, which is cut before them.
    stop_token_ids: token ids that end the sequence, beside the checkpoint's eos ids.
    ignore_eos: go on to max_new_tokens whatever the model says (benchmarks).

    Raises ValueError naming the field when a value is out of range.
    """

    max_new_tokens: int = 128
    policy: Policy | str | None = None
    threshold: float | None = DEFAULT_THRESHOLD
    steps_per_block: int | None = None
    block_length: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self):
        number("max_new_tokens", self.max_new_tokens, 1, math.inf, integer=True)
        if self.block_length is not None:
            number("block_length", self.block_length, 1, integer=True)
        self._check_policy()
        number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        number("top_k", self.top_k, 0, 2**31 - 1, integer=True)
        number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        if self.seed is not None:
            number("seed", self.seed, 0, 2**63 - 1, integer=True)
        # a frozen dataclass is normalised through object.__setattr__
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", _items("stop_token_ids", self.stop_token_ids))
        for index, text in enumerate(self.stop):
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop[{index}] must be a non-empty string, got {text!r}")
        for index, token in enumerate(self.stop_token_ids):
            number(f"stop_token_ids[{index}]", token, 0, 2**31 - 1, integer=True)

    def _check_policy(self):
        if isinstance(self.policy, str):
            object.__setattr__(self, "policy", parse(self.policy))
        if self.policy is not None:
            short = self.threshold != DEFAULT_THRESHOLD or self.steps_per_block is not None
            if short:
                raise ValueError("policy: give either a policy, or threshold and steps_per_block, not both")
            for name in ("rule", "wants", "parameters", "select"):
                if not hasattr(self.policy, name):
                    raise ValueError(f"policy must be one of edlm_engine.policies, got {self.policy!r}")
            return
        if self.threshold is not None:
            hint = "; threshold=None selects the fixed schedule"
            number("threshold", self.threshold, 0.0, 1.0, open_low=True, hint=hint)
        if self.steps_per_block is not None:
            number("steps_per_block", self.steps_per_block, 1, integer=True)

    @property
    def commit_policy(self) -> Policy:
        """The policy that is given, or that the short forms stand for."""
        if self.policy is not None:
            return self.policy
        if self.threshold is None:
            return Schedule(self.steps_per_block)
        return Threshold(self.threshold, self.steps_per_block)

    def override(self, **changes) -> "SamplingParams":
        """These parameters with others in place of some. A policy replaces a short form, and the other way
        round."""
        if changes.get("policy") is not None:
            changes = {"threshold": DEFAULT_THRESHOLD, "steps_per_block": None} | changes
        elif changes.keys() & {"threshold", "steps_per_block"}:
            changes = {"policy": None} | changes
        return replace(self, **changes)


PARAM_NAMES = tuple(field.name for field in fields(SamplingParams))
