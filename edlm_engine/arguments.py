"""What the calls of an engine take, by type, each option with its meaning in engine.py and params.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypedDict

import numpy as np
import torch

from .params import SamplingParams
from .steps.policies.policy import Policy

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.integer[Any]]] | torch.Tensor
# Types know nothing of dimensions: an array or tensor of two is a list of prompts, but passes for one.
Prompt: TypeAlias = str | Iterable[int | np.integer[Any]] | Ids
Prompts: TypeAlias = Iterable[Prompt]  # a str is one, too, which overloads see to by their order
Params: TypeAlias = SamplingParams | None
ParamsList: TypeAlias = SamplingParams | Sequence[SamplingParams] | None


class Message(Protocol):
    """A message that is an object: a dataclass, or one with model_dump()."""

    @property
    def role(self) -> str: ...


Messages: TypeAlias = Iterable[Mapping[str, Any] | Message]


class Overrides(TypedDict, total=False):
    """Single fields of SamplingParams."""

    max_new_tokens: int | None
    policy: Policy | str | None
    threshold: float | None
    steps_per_block: int | None
    block_length: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None


class StreamOptions(Overrides, total=False):
    """What any request may be given."""

    timeout: float | None
    priority: int | None


class RequestOptions(StreamOptions, total=False):
    """What generate() may be given besides."""

    progress: bool | None


class TemplateOptions(TypedDict, total=False):
    """What a chat template may be given. chat_template_kwargs: template_kwargs by the name that other engines
    know them by."""

    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    template_kwargs: Mapping[str, Any] | None
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | str | None


TEMPLATE_OPTIONS = frozenset(TemplateOptions.__annotations__)
REQUEST_OPTIONS = frozenset(RequestOptions.__annotations__) | {"n"}


class ChatStreamOptions(TemplateOptions, StreamOptions, total=False):
    """What any chat may be given."""


class ChatOptions(TemplateOptions, RequestOptions, total=False):
    """What chat() may be given besides."""
