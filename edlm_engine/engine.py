"""The public face: a model in memory, and requests to it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Unpack, overload

from .assembly import open_engine
from .core.observers import Observer
from .core.requests import Request
from .core.statistics import EngineStats
from .hardware.fresh_thread import on_fresh_thread
from .intake import Intake, as_list, check_samples, check_scheduling, is_long, sample_params
from .options import EngineOptions
from .outputs import Generation
from .params import Overrides, RequestOptions, SamplingParams, StreamOptions
from .progress import track
from .settings import load_settings
from .streams import AsyncChunkStream, ChunkStream

if TYPE_CHECKING:
    import os

    import numpy as np
    import torch

    from .checkpoints.tokenizer import Tokenizer

    Prompt = str | Sequence[int] | np.ndarray | torch.Tensor
    Prompts = list[str] | tuple[str, ...] | list[list[int]] | Sequence[np.ndarray] | Sequence[torch.Tensor]
    Params = SamplingParams | None
    Messages = Iterable[Mapping[str, Any]]
    Tools = Documents = Sequence[Mapping[str, Any]] | None

_LONG_TEXT = 1 << 15  # characters; on an event loop longer texts become tokens on a thread


class Engine:
    """A checkpoint in memory, ready to generate. Thread-safe: concurrent callers share one batch.

    model: a checkpoint folder, the name of a bundled model ("edlm-tiny"), or a hub id.
    device: "auto", "cpu", "cuda" (the current GPU of torch) or "cuda:1", or a torch.device.
    dtype: "auto" (bfloat16 on a GPU and where the processor multiplies it natively, else float32),
        "bfloat16", "float32", or "float16" (on a GPU), or torch's own.
    load_format: "auto" (safetensors) or "dummy" (random weights from config.json alone, for benchmarks).
    quantization: "int8" multiplies in int8, with weights quantised per output (while loading, unless
        `edlm quantize` did it before) and activations per row: about half the memory and twice the speed.
        "fp8" does the same in float8 (e4m3), on a GPU of compute capability 8.9 or later. None: what the
        checkpoint has.
    settings: the file that `edlm tune` wrote (or what it holds, as a dict): defaults of SamplingParams for
        requests that give none.
    block_length, mask_token_id, prefill: override what the checkpoint says; prefill is "block_causal",
        "bidirectional" or "causal".
    max_batch_size: sequences that run at once; others wait.
    max_waiting: how many may wait; a request beyond them raises EngineBusyError at once. None: any number.
    kv_cache_tokens: bound on the positions of all running sequences together; None takes room for
        max_batch_size sequences of up to 4096 positions, within a quarter of the available memory, or on a
        GPU within what the weights leave.
    num_threads: of the stepping thread; None: torch's setting, but no more than there are physical cores to
        use, by affinity and cgroup. They sleep between steps, and tokens do not depend on their number.
    stepping: who leads from one denoising step to the next. "eager": the host, which waits for each. Else the
        device, which the host follows some steps behind, with the same tokens in float32: "device", a loop on
        the GPU (CUDA 12.4 or later); "graph", a captured graph per step; "direct", neither (any device, to
        try the same things out). "auto": the first of "device" and "graph" that the GPU can do, "eager" on a
        CPU.
    revision, token, cache_dir, local_files_only: for a hub id, as huggingface_hub has them.

    Raises CheckpointError for a folder that cannot be used, ValueError for bad arguments, and on a GPU
    torch.OutOfMemoryError, which says how much is needed and how much is free.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        load_format: str = "auto",
        quantization: str | None = None,
        settings: str | os.PathLike[str] | dict[str, Any] | None = None,
        block_length: int | None = None,
        mask_token_id: int | None = None,
        prefill: str | None = None,
        max_batch_size: int = 16,
        max_waiting: int | None = None,
        kv_cache_tokens: int | None = None,
        num_threads: int | None = None,
        stepping: str = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> None:
        options = EngineOptions(
            device=device, dtype=dtype, load_format=load_format, quantization=quantization,
            block_length=block_length, mask_token_id=mask_token_id, prefill=prefill,
            max_batch_size=max_batch_size, max_waiting=max_waiting, kv_cache_tokens=kv_cache_tokens,
            num_threads=num_threads, stepping=stepping,
            hub={"revision": revision, "token": token, "cache_dir": cache_dir,
                 "local_files_only": local_files_only},
        )  # fmt: skip
        default_params = load_settings(settings) if settings is not None else SamplingParams()
        parts = on_fresh_thread(open_engine, model, options)
        self.config, self.decoding, self.path = parts.config, parts.decoding, parts.path
        self.dtype, self.device, self.kv_cache_tokens = parts.dtype, parts.device, parts.kv_cache_tokens
        self.quantization, self.num_threads = parts.quantization, parts.loop.num_threads
        self._chat_template, self._loop = parts.chat_template, parts.loop
        self._intake = Intake(
            parts.path, parts.config, parts.decoding, parts.kv_cache_tokens, parts.tokenizer, default_params
        )
        self._intake.check_block_length(default_params)
        self._finalizer = weakref.finalize(self, parts.loop.close)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Text to token ids and back; None where the checkpoint has no tokenizer."""
        return self._intake.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer | None) -> None:
        self._intake.tokenizer = tokenizer

    @property
    def default_params(self) -> SamplingParams:
        """Of requests that give none."""
        return self._intake.default_params

    @property
    def stepping(self) -> str:
        """Who leads from step to step: "eager", "direct", "graph" or "device". A GPU on which the loop turns
        out not to work goes on with "graph"."""
        return self._loop.stepping

    def stats(self) -> EngineStats:
        """What the engine does at this moment, and what it has done since it was made."""
        return self._loop.stats()

    def observe(self, observer: Observer) -> AbstractContextManager[Observer]:
        """Tell `observer` of the moments of every step (see core.observers), within a `with` block."""
        return self._loop.observers.attached(observer)

    @overload
    def generate(
        self, prompt: Prompt, params: Params = None, *, n: None = None, timeout: float | None = None,
        priority: int = 0, progress: bool = False, **overrides: Unpack[Overrides],
    ) -> Generation: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Prompts, params: Params | Sequence[SamplingParams] = None, *, n: None = None,
        timeout: float | None = None, priority: int = 0, progress: bool = False,
        **overrides: Unpack[Overrides],
    ) -> list[Generation]: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Prompt, params: Params = None, *, n: int, timeout: float | None = None,
        priority: int = 0, progress: bool = False, **overrides: Unpack[Overrides],
    ) -> list[Generation]: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Prompts, params: Params | Sequence[SamplingParams] = None, *, n: int,
        timeout: float | None = None, priority: int = 0, progress: bool = False,
        **overrides: Unpack[Overrides],
    ) -> list[list[Generation]]: ...  # fmt: skip

    def generate(
        self, prompt: Any, params: Any = None, *, n: int | None = None, timeout: float | None = None,
        priority: int = 0, progress: bool = False, **overrides: Unpack[Overrides],
    ) -> Any:  # fmt: skip
        """Complete one prompt, or a list of prompts in one batch.

        prompt: str, list of token ids, or a list of either (then the result is a list in the same order).
        params: SamplingParams, or one for each prompt; overrides: single fields of it.
        n: samples of each prompt; the result is then a list of so many in place of each. With a seed, sample
            i has seed + i.
        timeout: seconds from now after which what has not finished raises RequestTimeoutError.
        priority: of those that wait for a slot, the requests of the highest one go first.
        progress: show a progress bar on a terminal.

        Raises ValueError for bad prompts or parameters, CapacityError for a request that can never fit,
        EngineBusyError beyond max_waiting, NumericalError when the model yields NaN. A list is checked whole
        before any of it starts.
        """
        groups, shape = self._groups(*as_list(prompt), params, n, timeout, priority, overrides)
        requests = [request for group in groups for request in group]
        try:
            self._loop.submit(*requests)
            for future in track([r.future for r in requests], enabled=progress):
                future.exception()
            return shape([[request.future.result() for request in group] for group in groups])
        except BaseException:  # an interrupt must not leave requests running
            self._cancel(requests)
            raise

    def stream(
        self, prompt: Prompt, params: Params = None, *, timeout: float | None = None, priority: int = 0,
        **overrides: Unpack[Overrides],
    ) -> ChunkStream:  # fmt: skip
        """The same for one prompt, a Chunk for every denoising step; the last one holds the Generation.

        Closing the iterator cancels the request.
        """
        merged = self._intake.params(params, overrides)
        request = self._intake.request(prompt, merged, timeout=timeout, priority=priority)
        return ChunkStream(self._loop, request)

    def agenerate(
        self, prompt: Any, params: Any = None, *, n: int | None = None, timeout: float | None = None,
        priority: int = 0, **overrides: Unpack[Overrides],
    ) -> Coroutine[Any, Any, Any]:  # fmt: skip
        """generate() on an event loop; cancelling the task cancels the requests. Everything is checked at the
        call, but a long text is made tokens on a thread, once awaited."""
        prompts, single = as_list(prompt)
        job = (prompts, single, params, n, timeout, priority, overrides)
        if any(is_long(one, _LONG_TEXT) for one in prompts):
            self._intake.params_list(params, len(prompts), overrides)
            check_samples(n)
            check_scheduling(timeout, priority)
            return self._agenerate(None, job)
        return self._agenerate(self._groups(*job), job)

    async def _agenerate(self, made: Any, job: tuple[Any, ...]) -> Any:
        groups, shape = made or await asyncio.to_thread(self._groups, *job)
        requests = [request for group in groups for request in group]
        self._loop.submit(*requests)
        try:
            futures = [asyncio.wrap_future(request.future) for request in requests]
            results = iter(await asyncio.gather(*futures))
            return shape([[next(results) for _ in group] for group in groups])
        finally:
            self._cancel(requests)

    def astream(
        self, prompt: Prompt, params: Params = None, *, timeout: float | None = None, priority: int = 0,
        **overrides: Unpack[Overrides],
    ) -> AsyncChunkStream:  # fmt: skip
        """stream() on an event loop; checked and begun at the call as agenerate()."""
        merged = self._intake.params(params, overrides)
        timeout, priority = check_scheduling(timeout, priority)

        def request() -> Request:
            return self._intake.request(prompt, merged, timeout=timeout, priority=priority)

        return AsyncChunkStream(self._loop, request if is_long(prompt, _LONG_TEXT) else request())

    def chat(
        self, messages: Messages, params: Params = None, *, tools: Tools = None, documents: Documents = None,
        template_kwargs: Mapping[str, Any] | None = None, add_generation_prompt: bool = True,
        continue_final_message: bool = False, **options: Unpack[RequestOptions],
    ) -> Any:  # fmt: skip
        """Answer messages ({"role": ..., "content": ...}) through the checkpoint's chat template.

        tools, documents, template_kwargs: what the template may use, as in transformers' apply_chat_template.
        continue_final_message: go on with the last message instead of answering it. options: those of
        generate(), n among them, which returns what generate() does.

        Raises ValueError when there is no chat template or it refuses the messages.
        """
        ids = self._chat_ids(
            messages, tools, documents, template_kwargs, add_generation_prompt, continue_final_message
        )
        return self.generate(ids, params, **options)

    def stream_chat(
        self, messages: Messages, params: Params = None, *, tools: Tools = None, documents: Documents = None,
        template_kwargs: Mapping[str, Any] | None = None, add_generation_prompt: bool = True,
        continue_final_message: bool = False, **options: Unpack[StreamOptions],
    ) -> ChunkStream:  # fmt: skip
        """chat() with the answer as stream() gives it."""
        ids = self._chat_ids(
            messages, tools, documents, template_kwargs, add_generation_prompt, continue_final_message
        )
        return self.stream(ids, params, **options)

    def achat(
        self, messages: Messages, params: Params = None, *, tools: Tools = None, documents: Documents = None,
        template_kwargs: Mapping[str, Any] | None = None, add_generation_prompt: bool = True,
        continue_final_message: bool = False, **options: Unpack[RequestOptions],
    ) -> Coroutine[Any, Any, Any]:  # fmt: skip
        """chat() on an event loop, as agenerate(); the template is rendered at the call."""
        ids = self._chat_ids(
            messages, tools, documents, template_kwargs, add_generation_prompt, continue_final_message
        )
        return self.agenerate(ids, params, **options)

    def astream_chat(
        self, messages: Messages, params: Params = None, *, tools: Tools = None, documents: Documents = None,
        template_kwargs: Mapping[str, Any] | None = None, add_generation_prompt: bool = True,
        continue_final_message: bool = False, **options: Unpack[StreamOptions],
    ) -> AsyncChunkStream:  # fmt: skip
        """chat() with the answer as astream() gives it; the template is rendered at the call."""
        ids = self._chat_ids(
            messages, tools, documents, template_kwargs, add_generation_prompt, continue_final_message
        )
        return self.astream(ids, params, **options)

    def chat_prompt(
        self, messages: Messages, *, tools: Tools = None, documents: Documents = None,
        template_kwargs: Mapping[str, Any] | None = None, add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:  # fmt: skip
        """The text that chat() makes tokens of, which it does without adding the tokenizer's own special
        tokens: the template has written all there are."""
        if self._chat_template is None:
            raise ValueError(f"{self.path}: the checkpoint has no chat template; use generate()")
        return self._chat_template.render(
            messages, tools=tools, documents=documents, template_kwargs=template_kwargs,
            add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message,
        )  # fmt: skip

    def _chat_ids(
        self, messages: Messages, tools: Tools, documents: Documents,
        template_kwargs: Mapping[str, Any] | None, add_generation_prompt: bool, continue_final_message: bool,
    ) -> list[int]:  # fmt: skip
        text = self.chat_prompt(
            messages, tools=tools, documents=documents, template_kwargs=template_kwargs,
            add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message,
        )  # fmt: skip
        return self._intake.token_ids(text, "messages", special=False)

    def close(self) -> None:
        """Stop the engine; requests that have not ended raise EngineClosedError."""
        self._loop.close()

    async def aclose(self) -> None:
        """close() on an event loop, which goes on while the step under way ends."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        kind = "/".join(filter(None, (self.device, self.dtype, self.quantization)))
        stats = self.stats()
        does = "closed" if self._loop.closed else f"{stats.running} running, {stats.waiting} waiting"
        return f"<Engine {str(self.path)!r} {kind}, {does}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "an Engine cannot be pickled or copied: it holds a model and a thread; hand over the path of "
            "the checkpoint and make one there"
        )

    def _groups(
        self, prompts: list[Any], single: bool, params: Any, n: Any, timeout: Any, priority: Any,
        overrides: Any,
    ) -> Any:  # fmt: skip
        """Requests, a list for each prompt, and what puts their results into the caller's shape."""
        labels = ["prompt"] if single else [f"prompt[{i}]" for i in range(len(prompts))]
        every = self._intake.params_list(params, len(prompts), overrides)
        n = check_samples(n)
        groups: list[list[Request]] = []
        for p, own, label in zip(prompts, every, labels, strict=True):
            groups.append([])
            for sample in sample_params(own, n or 1):
                ids = groups[-1][0].prompt if groups[-1] else p  # a text is cut into tokens once
                request = self._intake.request(ids, sample, where=label, timeout=timeout, priority=priority)
                groups[-1].append(request)

        def shape(results: list[list[Generation]]) -> Any:
            shaped = results if n else [one for (one,) in results]
            return shaped[0] if single else shaped

        return groups, shape

    def _cancel(self, requests: list[Request]) -> None:
        for request in requests:
            self._loop.cancel(request)
