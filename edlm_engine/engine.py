"""The public face: a model in memory, and requests to it."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, Unpack, overload

import torch

from .arguments import (
    REQUEST_OPTIONS,
    TEMPLATE_OPTIONS,
    ChatOptions,
    ChatStreamOptions,
    Messages,
    Overrides,
    Params,
    ParamsList,
    Prompt,
    Prompts,
    RequestOptions,
    StreamOptions,
    TemplateOptions,
)
from .assembly import EngineParts, open_engine
from .checkpoints.tokenizer import Tokenizer
from .core.observers import Observer
from .core.requests import Request
from .core.statistics import EngineStats
from .hardware.fresh_thread import on_fresh_thread
from .intake import Batch, Intake, Job, RenderedChat, as_list, check_scheduling, is_long
from .options import EngineOptions
from .outputs import Generation
from .params import SamplingParams
from .progress import track
from .settings import load_settings
from .streams import AsyncChunkStream, ChunkStream

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
        device: str | torch.device | None = "auto",
        dtype: str | torch.dtype | None = "auto",
        load_format: str | None = "auto",
        quantization: str | None = None,
        settings: str | os.PathLike[str] | dict[str, Any] | None = None,
        block_length: int | None = None,
        mask_token_id: int | None = None,
        prefill: str | None = None,
        max_batch_size: int | None = 16,
        max_waiting: int | None = None,
        kv_cache_tokens: int | None = None,
        num_threads: int | None = None,
        stepping: str | None = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool | None = False,
    ) -> None:
        options = EngineOptions(
            device=device, dtype=dtype, load_format=load_format, quantization=quantization,
            block_length=block_length, mask_token_id=mask_token_id, prefill=prefill,
            max_batch_size=max_batch_size, max_waiting=max_waiting, kv_cache_tokens=kv_cache_tokens,
            num_threads=num_threads, stepping=stepping,
            hub={"revision": revision, "token": token, "cache_dir": cache_dir,
                 "local_files_only": bool(local_files_only)},
        )  # fmt: skip
        default_params = load_settings(settings) if settings is not None else SamplingParams()
        parts: EngineParts = on_fresh_thread(open_engine, model, options)
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
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, params: Params = None, *, n: None = None, **options: Unpack[RequestOptions]
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Prompts, params: ParamsList = None, *, n: None = None, **options: Unpack[RequestOptions]
    ) -> list[Generation]: ...
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, params: Params = None, *, n: int, **options: Unpack[RequestOptions]
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompt: Prompts, params: ParamsList = None, *, n: int, **options: Unpack[RequestOptions]
    ) -> list[list[Generation]]: ...
    def generate(
        self, prompt: Any, params: Any = None, *, n: int | None = None, timeout: float | None = None,
        priority: int | None = 0, progress: bool | None = False, **overrides: Unpack[Overrides],
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
        batch = self._intake.batch(Job(*as_list(prompt), params, n, timeout, priority, overrides))
        requests = batch.requests
        try:
            self._loop.submit(*requests)
            for future in track([request.future for request in requests], enabled=bool(progress)):
                future.exception()
            return batch.shaped(request.future.result() for request in requests)
        except BaseException:  # an interrupt must not leave requests running
            self._cancel(requests)
            raise

    def stream(
        self, prompt: Prompt, params: Params = None, *, timeout: float | None = None,
        priority: int | None = 0, **overrides: Unpack[Overrides],
    ) -> ChunkStream:  # fmt: skip
        """The same for one prompt, a Chunk for every denoising step; the last one holds the Generation.

        Closing the iterator cancels the request.
        """
        merged = self._intake.params(params, overrides)
        request = self._intake.request(prompt, merged, timeout=timeout, priority=priority)
        return ChunkStream(self._loop, request)

    @overload
    def agenerate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, params: Params = None, *, n: None = None, **options: Unpack[StreamOptions]
    ) -> Coroutine[Any, Any, Generation]: ...
    @overload
    def agenerate(
        self, prompt: Prompts, params: ParamsList = None, *, n: None = None, **options: Unpack[StreamOptions]
    ) -> Coroutine[Any, Any, list[Generation]]: ...
    @overload
    def agenerate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, params: Params = None, *, n: int, **options: Unpack[StreamOptions]
    ) -> Coroutine[Any, Any, list[Generation]]: ...
    @overload
    def agenerate(
        self, prompt: Prompts, params: ParamsList = None, *, n: int, **options: Unpack[StreamOptions]
    ) -> Coroutine[Any, Any, list[list[Generation]]]: ...
    def agenerate(
        self, prompt: Any, params: Any = None, *, n: int | None = None, timeout: float | None = None,
        priority: int | None = 0, **overrides: Unpack[Overrides],
    ) -> Coroutine[Any, Any, Any]:  # fmt: skip
        """generate() on an event loop; cancelling the task cancels the requests. Everything is checked at the
        call, but a long text is made tokens on a thread, once awaited."""
        job = Job(*as_list(prompt), params, n, timeout, priority, overrides)
        if any(is_long(one, _LONG_TEXT) for one in job.prompts):
            self._intake.check(job)
            return self._agenerate(job)
        return self._agenerate(self._intake.batch(job))

    async def _agenerate(self, work: Job | Batch) -> Any:
        batch = await asyncio.to_thread(self._intake.batch, work) if isinstance(work, Job) else work
        requests = batch.requests
        self._loop.submit(*requests)
        try:
            futures = [asyncio.wrap_future(request.future) for request in requests]
            return batch.shaped(await asyncio.gather(*futures))
        finally:
            self._cancel(requests)

    def astream(
        self, prompt: Prompt, params: Params = None, *, timeout: float | None = None,
        priority: int | None = 0, **overrides: Unpack[Overrides],
    ) -> AsyncChunkStream:  # fmt: skip
        """stream() on an event loop; checked and begun at the call, but for a long text, as agenerate()."""
        merged = self._intake.params(params, overrides)
        timeout, priority = check_scheduling(timeout, priority)

        def request() -> Request:
            return self._intake.request(prompt, merged, timeout=timeout, priority=priority)

        return AsyncChunkStream(self._loop, request if is_long(prompt, _LONG_TEXT) else request())

    @overload
    def chat(
        self, messages: Messages, params: Params = None, *, n: None = None, **options: Unpack[ChatOptions]
    ) -> Generation: ...
    @overload
    def chat(
        self, messages: Messages, params: Params = None, *, n: int, **options: Unpack[ChatOptions]
    ) -> list[Generation]: ...
    def chat(
        self, messages: Messages, params: Params = None, *, n: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> Any:  # fmt: skip
        """Answer messages ({"role": ..., "content": ...}) through the checkpoint's chat template.

        tools, documents, template_kwargs: what the template may use, as in transformers' apply_chat_template.
            A variable that the template reads, say enable_thinking, may also be given by itself.
        add_generation_prompt: whether the template begins the answer (True).
        continue_final_message: go on with the last message instead of answering it (False).
        n and all others: those of generate(), which says what comes back.

        Raises ValueError when there is no chat template or it refuses the messages.
        """
        prompt, others = self._rendered(messages, options)
        return self.generate(prompt, params, n=n, **others)

    def stream_chat(
        self, messages: Messages, params: Params = None, **options: Unpack[ChatStreamOptions]
    ) -> ChunkStream:
        """chat() with the answer as stream() gives it."""
        prompt, others = self._rendered(messages, options)
        return self.stream(prompt, params, **others)

    @overload
    def achat(
        self, messages: Messages, params: Params = None, *, n: None = None,
        **options: Unpack[ChatStreamOptions],
    ) -> Coroutine[Any, Any, Generation]: ...  # fmt: skip
    @overload
    def achat(
        self, messages: Messages, params: Params = None, *, n: int, **options: Unpack[ChatStreamOptions]
    ) -> Coroutine[Any, Any, list[Generation]]: ...
    def achat(
        self, messages: Messages, params: Params = None, *, n: int | None = None,
        **options: Unpack[ChatStreamOptions],
    ) -> Any:  # fmt: skip
        """chat() on an event loop, as agenerate(); the template is rendered at the call."""
        prompt, others = self._rendered(messages, options)
        return self.agenerate(prompt, params, n=n, **others)

    def astream_chat(
        self, messages: Messages, params: Params = None, **options: Unpack[ChatStreamOptions]
    ) -> AsyncChunkStream:
        """chat() with the answer as astream() gives it; the template is rendered at the call."""
        prompt, others = self._rendered(messages, options)
        return self.astream(prompt, params, **others)

    def chat_prompt(self, messages: Messages, **options: Unpack[TemplateOptions]) -> str:
        """The text that chat() makes tokens of, which it does without adding the tokenizer's own special
        tokens: the template has written all there are."""
        prompt, others = self._rendered(messages, options)
        if others:
            known = ", ".join(sorted(TEMPLATE_OPTIONS))
            raise TypeError(
                f"unknown option {next(iter(others))!r}; known: {known}, and what the template reads"
            )
        return str(prompt)

    def _rendered(
        self, messages: Messages, options: Mapping[str, Any]
    ) -> tuple[RenderedChat, dict[str, Any]]:
        """The prompt of a chat, and those of its options that are the request's."""
        template = self._chat_template
        if template is None:
            raise ValueError(f"{self.path}: the checkpoint has no chat template; use generate()")
        given = {
            name: options[name] for name in TEMPLATE_OPTIONS & options.keys() if options[name] is not None
        }
        others = {name: value for name, value in options.items() if name not in TEMPLATE_OPTIONS}
        if (variables := given.pop("chat_template_kwargs", None)) is not None:
            given.setdefault("template_kwargs", variables)
        read = [name for name in others if name not in REQUEST_OPTIONS and template.reads(name)]
        if read:
            direct = {name: others.pop(name) for name in read}
            given["template_kwargs"] = {**given.get("template_kwargs", {}), **direct}
        return RenderedChat(template.render(messages, **given)), others

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
        return f"<Engine {str(self.path)!r} {kind}, {self._loop.describe()}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "an Engine cannot be pickled or copied: it holds a model and a thread; hand over the path of "
            "the checkpoint and make one there"
        )

    def _cancel(self, requests: list[Request]) -> None:
        for request in requests:
            self._loop.cancel(request)
