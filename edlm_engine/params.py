"""What one request may choose."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np

from .errors import shown
from .steps.policies import parse
from .steps.policies.policy import Policy, number, settle
from .steps.policies.schedule import Schedule
from .steps.policies.threshold import Threshold

DEFAULT_THRESHOLD = 0.9
DEFAULT_NEW_TOKENS = 128
# Far beyond use on both sides; they keep the fp32 quotient of logits and temperature sound.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-30, 1e4
MAX_STOPS, MAX_STOP_CHARACTERS, MAX_STOP_IDS = 256, 16384, 4096  # of a request, in all


def _items(name: str, value: Any) -> tuple[Any, ...]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise ValueError(f"{name} must be a sequence, got {shown(value)}")
    return tuple(value)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is decoded. None stands for the default everywhere; only threshold=None has a meaning.

    max_new_tokens: most tokens to generate; the last block is cut to what is left of it. None: 128, or fewer
        where the prompt leaves less room; a number that does not fit is an error.
    policy: which of the open positions a denoising step commits, one of edlm_engine.policies or its text form
        ("entropy_bound:0.15"). None: what the next two say.
    threshold, steps_per_block: the short forms of Threshold(threshold, max_steps=steps_per_block) and, with
        threshold None, of Schedule(steps_per_block).
    block_length: positions that are denoised together; None: the engine's, which is also the most.
    temperature: 0 is greedy. Above, tokens are drawn by Gumbel-max, argmax(logits / T + g).
    top_k, top_p: restrict what is drawn at temperature > 0 (0 or -1, and 1.0: no restriction).
    seed: keys the random numbers, with the absolute position and the step; None draws a fresh seed.
    stop: strings that end the text, which is cut before them; names of special tokens count, too. At most 256
        of 16,384 characters together.
    stop_token_ids: token ids that end the sequence, beside the checkpoint's eos ids; at most 4096.
    ignore_eos: go on to max_new_tokens whatever the model says (benchmarks).

    Raises ValueError naming the field when a value is out of range.
    """

    max_new_tokens: int | None = None
    policy: Policy | str | None = None
    threshold: float | None = DEFAULT_THRESHOLD
    steps_per_block: int | None = None
    block_length: int | None = None
    temperature: float | None = 0.0
    top_k: int | None = 0
    top_p: float | None = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    ignore_eos: bool | None = False

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None and field.name != "threshold":
                self._set(field.name, field.default)
        for name in ("max_new_tokens", "block_length"):
            if getattr(self, name) is not None:
                settle(self, name, 1, 2**31 - 1, integer=True)
        self._check_policy()
        temperature = number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        self._set("temperature", temperature if temperature >= MIN_TEMPERATURE else 0.0)
        self._set("top_k", max(0, number("top_k", self.top_k, -1, 2**31 - 1, integer=True)))
        settle(self, "top_p", 0.0, 1.0, open_low=True)
        if self.seed is not None:
            settle(self, "seed", 0, 2**63 - 1, integer=True)
        self._check_stops()
        if not isinstance(self.ignore_eos, bool | np.bool_):
            raise ValueError(f"ignore_eos must be True or False, got {shown(self.ignore_eos)}")
        self._set("ignore_eos", bool(self.ignore_eos))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass is normalised this way

    def _check_stops(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        for index, text in enumerate(stop):
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop[{index}] must be a non-empty string, got {shown(text)}")
        characters = sum(map(len, stop))
        if len(stop) > MAX_STOPS or characters > MAX_STOP_CHARACTERS:
            allowed = f"{MAX_STOPS} strings of {MAX_STOP_CHARACTERS} characters together"
            raise ValueError(f"stop: {len(stop)} strings of {characters} characters; at most {allowed}")
        self._set("stop", stop)
        ids = _items("stop_token_ids", self.stop_token_ids)
        if len(ids) > MAX_STOP_IDS:
            raise ValueError(f"stop_token_ids: {len(ids)} ids; at most {MAX_STOP_IDS}")
        plain = (number(f"stop_token_ids[{i}]", t, 0, 2**31 - 1, integer=True) for i, t in enumerate(ids))
        self._set("stop_token_ids", tuple(plain))

    def _check_policy(self) -> None:
        if isinstance(self.policy, str):
            self._set("policy", parse(self.policy))
        if self.policy is not None:
            short = self.threshold != DEFAULT_THRESHOLD or self.steps_per_block is not None
            if short:
                raise ValueError("policy: give either a policy, or threshold and steps_per_block, not both")
            known = all(hasattr(self.policy, name) for name in ("rule", "wants", "parameters", "select"))
            if not known or isinstance(self.policy, type):
                kinds = "one of edlm_engine.policies, say Threshold(0.9)"
                raise ValueError(f"policy must be {kinds}, got {shown(self.policy)}")
            return
        if self.threshold is not None:
            hint = "; threshold=None selects the fixed schedule"
            settle(self, "threshold", 0.0, 1.0, open_low=True, hint=hint)
        if self.steps_per_block is not None:
            settle(self, "steps_per_block", 1, integer=True)

    @property
    def commit_policy(self) -> Policy:
        """The policy that is given, or that the short forms stand for."""
        if self.policy is not None:
            return cast(Policy, self.policy)  # a text form has been parsed
        if self.threshold is None:
            return Schedule(self.steps_per_block)
        return Threshold(self.threshold, self.steps_per_block)

    def override(self, **changes: Any) -> "SamplingParams":
        """These parameters with others in place of some. A policy replaces a short form, and the other way
        round."""
        if changes.get("policy") is not None:
            changes = {"threshold": DEFAULT_THRESHOLD, "steps_per_block": None} | changes
        elif changes.keys() & {"threshold", "steps_per_block"}:
            changes = {"policy": None} | changes
        return replace(self, **changes)


PARAM_NAMES = tuple(field.name for field in fields(SamplingParams))
