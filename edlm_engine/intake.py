"""From what a caller gives to requests: everything is checked before anything starts."""

import math
import secrets
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

from .checkpoints.tokenizer import Tokenizer
from .config import DecodingConfig, ModelConfig
from .core.requests import Request
from .core.transcript import Transcript
from .errors import CapacityError, shown
from .outputs import Generation
from .params import DEFAULT_NEW_TOKENS, PARAM_NAMES, SamplingParams
from .steps.policies.policy import number

MAX_SAMPLES = 4096
_ALWAYS_ENCODED = 1 << 20  # characters; longer texts are measured against the longest token first


class RenderedChat(str):
    """A prompt whose special tokens its template has written: the tokenizer adds none of its own."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one call asks for, as it came: prompts, whether there is just one that stands for itself, and what
    shall be done with them."""

    prompts: list[Any]
    single: bool
    params: Any
    n: Any
    timeout: Any
    priority: Any
    overrides: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """What becomes of it: requests, a list of them for each prompt. sampled: whether there was an n."""

    groups: list[list[Request]]
    single: bool
    sampled: bool

    @property
    def requests(self) -> list[Request]:
        return [request for group in self.groups for request in group]

    def shaped(self, results: Iterable[Generation]) -> Any:
        """The requests' results as the caller wants them: one, a list, or a list of lists."""
        rest = iter(results)
        groups = [[next(rest) for _ in group] for group in self.groups]
        shaped = groups if self.sampled else [one for (one,) in groups]
        return shaped[0] if self.single else shaped


@dataclass(slots=True)
class Intake:
    """What an engine holds its requests against. positions: of the longest request that ever fits."""

    path: Path
    config: ModelConfig
    decoding: DecodingConfig
    kv_cache_tokens: int
    tokenizer: Tokenizer | None
    default_params: SamplingParams

    @property
    def positions(self) -> int:
        return min(self.config.max_positions, self.kv_cache_tokens)

    def batch(self, job: Job) -> Batch:
        """Raises TypeError, ValueError and CapacityError before any of it starts."""
        every, n = self.check(job)
        labels = ["prompt"] if job.single else [f"prompt[{i}]" for i in range(len(job.prompts))]
        groups: list[list[Request]] = []
        for prompt, params, label in zip(job.prompts, every, labels, strict=True):
            groups.append([])
            for sample in sample_params(params, n or 1):
                ids = groups[-1][0].prompt if groups[-1] else prompt  # a text is cut into tokens once
                request = self.request(ids, sample, where=label, timeout=job.timeout, priority=job.priority)
                groups[-1].append(request)
        return Batch(groups, job.single, n is not None)

    def check(self, job: Job) -> tuple[list[SamplingParams], int | None]:
        """Everything but the prompts, which may take long: the parameters of each, and n."""
        every = self.params_list(job.params, len(job.prompts), job.overrides)
        check_scheduling(job.timeout, job.priority)
        return every, check_samples(job.n)

    def params(self, params: Any, overrides: Mapping[str, Any]) -> SamplingParams:
        """Raises TypeError and ValueError for what is no parameter or out of range."""
        if params is not None and not isinstance(params, SamplingParams):
            raise TypeError(f"params must be SamplingParams, got {shown(params)}")
        unknown = sorted(set(overrides) - set(PARAM_NAMES))
        if unknown:
            raise TypeError(f"unknown sampling parameter {unknown[0]!r}; known: {', '.join(PARAM_NAMES)}")
        merged = (params or self.default_params).override(**overrides)
        if merged.stop and self.tokenizer is None:
            raise ValueError(f"{self.path}: stop strings need a tokenizer, and the checkpoint has none")
        self.check_block_length(merged)
        return merged

    def params_list(self, params: Any, count: int, overrides: Mapping[str, Any]) -> list[SamplingParams]:
        """One for each of `count` prompts."""
        if not isinstance(params, list | tuple):
            return [self.params(params, overrides)] * count
        if len(params) != count:
            raise ValueError(f"{len(params)} params for {count} prompts; give one for all or one for each")
        return [self.params(own, overrides) for own in params]

    def check_block_length(self, params: SamplingParams) -> None:
        """Raises ValueError if the engine cannot decode such blocks."""
        most = self.decoding.block_length
        if params.block_length is None:
            return
        if self.decoding.autoregressive:
            raise ValueError(
                f"block_length={params.block_length}: {self.path} is autoregressive, without blocks"
            )
        if params.block_length > most:
            hint = f"Engine(..., block_length={params.block_length}) allows it"
            raise ValueError(f"block_length={params.block_length} exceeds the engine's {most}; {hint}")

    def request(
        self,
        prompt: Any,
        params: SamplingParams,
        *,
        where: str = "prompt",
        timeout: Any = None,
        priority: Any = 0,
    ) -> Request:
        """Raises TypeError, ValueError and CapacityError that name the prompt as `where`."""
        timeout, priority = check_scheduling(timeout, priority)
        ids = self._token_ids(prompt, where)
        params = replace(params, max_new_tokens=self._new_tokens(len(ids), params.max_new_tokens, where))
        transcript = Transcript(params, self.decoding.eos_token_ids, self.tokenizer)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        return Request(ids, params, seed, transcript, timeout=timeout, priority=priority)

    def _new_tokens(self, prompt: int, wanted: int | None, where: str) -> int:
        """How many tokens may follow a prompt: `wanted`, or the default as far as there is room."""
        number_of = DEFAULT_NEW_TOKENS if wanted is None else wanted
        if wanted is None:
            number_of = max(1, min(number_of, self.positions - prompt))
        sizes = f"{where}: {prompt} prompt tokens + {number_of} new ones"
        if prompt + number_of > self.config.max_positions:
            raise CapacityError(f"{sizes} exceed the model's {self.config.max_positions} positions")
        if prompt + number_of > self.kv_cache_tokens:
            raise CapacityError(f"{sizes} exceed kv_cache_tokens={self.kv_cache_tokens}")
        return number_of

    def _token_ids(self, prompt: Any, where: str) -> list[int]:
        if isinstance(prompt, RenderedChat):
            where = "messages"
        if isinstance(prompt, str):
            prompt = self._encode(prompt, where)
        ids = []
        for i, token in enumerate(plain(prompt, where)):
            try:
                if isinstance(token, bool):
                    raise TypeError
                ids.append(index(token))
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"{where}[{i}] must be a token id (int), got {shown(token)}") from None
            if not 0 <= ids[-1] < self.config.vocab_size:
                vocabulary = f"[0, {self.config.vocab_size})"
                found = ids[-1] if abs(ids[-1]) < 2**63 else "a number of more than 64 bits"
                raise ValueError(f"{where}[{i}] is {found}, outside the vocabulary {vocabulary}")
        if not ids:
            raise ValueError(f"{where} is empty; at least one token is needed")
        return ids

    def _encode(self, text: str, where: str) -> list[int]:
        if self.tokenizer is None:
            raise ValueError(f"{self.path}: no tokenizer in the checkpoint; give token ids as the prompt")
        most = max(_ALWAYS_ENCODED, self.positions * self.tokenizer.longest_piece)
        if len(text) > most:
            raise CapacityError(
                f"{where}: {len(text)} characters cannot fit into {self.positions} positions; "
                f"no token is longer than {self.tokenizer.longest_piece} characters"
            )
        try:
            if isinstance(text, RenderedChat):
                return self.tokenizer.encode(str(text), special=False)
            return self.tokenizer.encode(text)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def check_scheduling(timeout: Any, priority: Any) -> tuple[float | None, int]:
    """Plain numbers. Raises ValueError naming the one that is wrong."""
    if timeout is not None:
        timeout = number("timeout", timeout, 0, math.inf, open_low=True)
    if priority is None:
        return timeout, 0
    return timeout, int(number("priority", priority, -(2**31), 2**31 - 1, integer=True))


def check_samples(n: Any) -> int | None:
    """n as a plain number. Raises ValueError."""
    return None if n is None else int(number("n", n, 1, MAX_SAMPLES, integer=True))


def sample_params(params: SamplingParams, n: int) -> list[SamplingParams]:
    """For n samples of a prompt: with a seed, each has its own, the first the one given."""
    if params.seed is None:
        return [params] * n
    return [replace(params, seed=(params.seed + i) % 2**63) for i in range(n)]


def as_list(prompt: Any) -> tuple[list[Any], bool]:
    """The prompts, and whether there is just one that stands for itself."""
    if isinstance(prompt, str):
        return [prompt], True
    items = list(plain(prompt, "prompt"))
    if all(isinstance(item, Iterable) and not _is_scalar(item) for item in items):
        return items, False
    return [items], True


def is_long(prompt: Any, most: int) -> bool:
    """Whether turning a prompt into tokens would keep an event loop waiting."""
    return isinstance(prompt, str) and len(prompt) > most


def plain(prompt: Any, where: str) -> Iterable[Any]:
    """The items of a prompt; tensors and arrays become lists."""
    found = prompt
    prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(prompt, Iterable) or isinstance(prompt, bytes | Mapping | Set):
        raise TypeError(f"{where} must be a str, a list of token ids or a list of either, got {shown(found)}")
    return prompt


def _is_scalar(item: Any) -> bool:
    """A tensor or array without dimensions says that it can be iterated, and cannot."""
    return getattr(item, "ndim", None) == 0
