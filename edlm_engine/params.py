"""What one request may choose."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real

MAX_TEMPERATURE = 1e4  # far beyond use; keeps the fp32 quotient of logits and temperature sound


def _number(name, value, low, high, *, integer=False, open_low=False, hint=""):
    kind = Integral if integer else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not (integer or math.isfinite(value)):
        raise ValueError(f"{name} must be {'an integer' if integer else 'a finite number'}, got {value!r}")
    if value < low or value > high or (open_low and value == low):
        interval = f"{'(' if open_low else '['}{low}, {high}{']' if math.isfinite(high) else ')'}"
        raise ValueError(f"{name} must be in {interval}, got {value!r}{hint}")


def _items(name, value) -> tuple:
    if not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a sequence, got {value!r}")
    return tuple(value)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is decoded.

    max_new_tokens: most tokens to generate; the last block is cut to what is left of it.
    threshold: confidence threshold in (0, 1]. A denoising step commits every masked position whose token
        has at least this probability under the raw logits, and always the most confident one
        (Efficient-DLM, arXiv 2512.14067, App. A). None: the fixed schedule of `steps_per_block`.
    steps_per_block: with threshold None, the number of denoising steps of a block, floor(masked / steps)
        commits each and the remainder one each on the first (default: one token per step). With a
        threshold, a cap: the last allowed step commits whatever is left.
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
    threshold: float | None = 0.9
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
        _number("max_new_tokens", self.max_new_tokens, 1, math.inf, integer=True)
        if self.threshold is not None:
            hint = "; threshold=None selects the fixed schedule"
            _number("threshold", self.threshold, 0.0, 1.0, open_low=True, hint=hint)
        for name in ("steps_per_block", "block_length"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), 1, math.inf, integer=True)
        _number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _number("top_k", self.top_k, 0, 2**31 - 1, integer=True)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        if self.seed is not None:
            _number("seed", self.seed, 0, 2**63 - 1, integer=True)
        # a frozen dataclass is normalised through object.__setattr__
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", _items("stop_token_ids", self.stop_token_ids))
        for index, text in enumerate(self.stop):
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop[{index}] must be a non-empty string, got {text!r}")
        for index, token in enumerate(self.stop_token_ids):
            _number(f"stop_token_ids[{index}]", token, 0, 2**31 - 1, integer=True)


PARAM_NAMES = tuple(field.name for field in fields(SamplingParams))
