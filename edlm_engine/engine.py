"""The public face: a model in memory, and requests to it."""

import asyncio
import queue
import secrets
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from operator import index

from .assembly import open_engine
from .core.observers import Observer
from .core.requests import Request
from .core.transcript import Transcript
from .errors import CapacityError
from .options import EngineOptions
from .outputs import Chunk, Generation
from .params import PARAM_NAMES, SamplingParams
from .progress import track
from .settings import load_settings


class Engine:
    """A checkpoint in memory, ready to generate. Thread-safe: concurrent callers share one batch.

    model: a checkpoint folder, the name of a bundled model ("edlm-tiny"), or a hub id.
    device: "auto", "cpu" or "cuda" (the current GPU of torch). dtype: "auto" (bfloat16 on a GPU and where the
        processor multiplies it natively, else float32), "bfloat16", "float32", or "float16" (on a GPU).
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

    Raises CheckpointError for a folder that cannot be used, ValueError for bad arguments, and on a GPU
    torch.OutOfMemoryError, which says how much is needed and how much is free.
    """

    def __init__(
        self,
        model,
        *,
        device="auto",
        dtype="auto",
        load_format="auto",
        quantization=None,
        settings=None,
        block_length=None,
        mask_token_id=None,
        prefill=None,
        max_batch_size=16,
        kv_cache_tokens=None,
        num_threads=None,
        stepping="auto",
    ):
        options = EngineOptions(
            device=device, dtype=dtype, load_format=load_format, quantization=quantization,
            block_length=block_length, mask_token_id=mask_token_id, prefill=prefill,
            max_batch_size=max_batch_size, kv_cache_tokens=kv_cache_tokens, num_threads=num_threads,
            stepping=stepping,
        )  # fmt: skip
        self.default_params = load_settings(settings) if settings is not None else SamplingParams()
        parts = open_engine(model, options)
        self.config, self.decoding, self.path = parts.config, parts.decoding, parts.path
        self.dtype, self.device, self.kv_cache_tokens = parts.dtype, parts.device, parts.kv_cache_tokens
        self.quantization, self.num_threads = parts.quantization, parts.loop.num_threads
        self.tokenizer, self._chat_template, self._loop = parts.tokenizer, parts.chat_template, parts.loop
        self._check_block_length(self.default_params)
        self._finalizer = weakref.finalize(self, parts.loop.close)

    @property
    def stepping(self) -> str:
        """Who leads from step to step: "eager", "direct", "graph" or "device". A GPU on which the loop turns
        out not to work goes on with "graph"."""
        return self._loop.stepping

    def observe(self, observer: Observer) -> AbstractContextManager[Observer]:
        """Tell `observer` of the moments of every step (see core.observers), within a `with` block."""
        return self._loop.observers.attached(observer)

    def generate(self, prompt, params=None, *, progress=False, **overrides) -> Generation | list[Generation]:
        """Complete one prompt, or a list of prompts in one batch.

        prompt: str, list of token ids, or a list of either (then the result is a list in the same order).
        params: SamplingParams, or one for each prompt; overrides: single fields of it.
        progress: show a progress bar on a terminal.

        Raises ValueError for bad prompts or parameters, CapacityError for a request that can never fit,
        NumericalError when the model yields NaN. A list is checked whole before any of it starts.
        """
        prompts, single = self._as_list(prompt)
        labels = ["prompt"] if single else [f"prompt[{i}]" for i in range(len(prompts))]
        every = self._params_list(params, len(prompts), overrides)
        requests = [
            self._request(p, own, None, label) for p, own, label in zip(prompts, every, labels, strict=True)
        ]
        try:
            self._loop.submit(*requests)
            for future in track([r.future for r in requests], enabled=progress):
                future.exception()
            results = [request.future.result() for request in requests]
        except BaseException:  # an interrupt must not leave requests running
            for request in requests:
                self._loop.cancel(request)
            raise
        return results[0] if single else results

    def stream(self, prompt, params=None, **overrides) -> Iterator[Chunk]:
        """The same for one prompt, a Chunk for every denoising step; the last one holds the Generation.

        Closing the iterator cancels the request.
        """
        chunks: queue.SimpleQueue = queue.SimpleQueue()
        request = self._request(prompt, self._merge(params, overrides), chunks.put)
        self._loop.submit(request)
        request.future.add_done_callback(chunks.put)
        stream = self._drain(request, chunks)
        next(stream)  # a generator that never started would skip its finally clause when closed
        return stream

    def _drain(self, request: Request, chunks: queue.SimpleQueue) -> Iterator[Chunk | None]:
        try:
            yield None
            while not isinstance(item := chunks.get(), Future):
                yield item
            item.result()  # raises what ended the request early
        finally:
            self._loop.cancel(request)

    async def agenerate(self, prompt, params=None, **overrides) -> Generation:
        """generate() for one prompt on an event loop; cancelling the task cancels the request."""
        request = self._request(prompt, self._merge(params, overrides))
        self._loop.submit(request)
        try:
            return await asyncio.wrap_future(request.future)
        finally:
            self._loop.cancel(request)

    async def astream(self, prompt, params=None, **overrides) -> AsyncIterator[Chunk]:
        """stream() on an event loop."""
        event_loop, chunks = asyncio.get_running_loop(), asyncio.Queue()

        def put(item):
            with suppress(RuntimeError):  # the event loop may be closed before the engine notices
                event_loop.call_soon_threadsafe(chunks.put_nowait, item)

        request = self._request(prompt, self._merge(params, overrides), put)
        self._loop.submit(request)
        request.future.add_done_callback(put)
        try:
            while not isinstance(item := await chunks.get(), Future):
                yield item
            item.result()
        finally:
            self._loop.cancel(request)

    def chat(self, messages: list[dict], params=None, **overrides) -> Generation:
        """Answer messages ({"role": ..., "content": ...}) through the checkpoint's chat template."""
        return self.generate(self.chat_prompt(messages), params, **overrides)

    def chat_prompt(self, messages: list[dict]) -> str:
        """The prompt that chat() generates from, without a bos that the tokenizer adds itself.

        Raises ValueError when there is no chat template or it refuses the messages.
        """
        if self._chat_template is None:
            raise ValueError(f"{self.path}: the checkpoint has no chat template; use generate()")
        prompt = self._chat_template.render(messages)
        added = self.tokenizer.encode("")[:1] if self.tokenizer else []
        # the tokenizer writes its bos itself: one from the template would be a second
        return prompt.removeprefix(self.tokenizer.piece(added[0])) if added else prompt

    def close(self):
        """Stop the engine; requests that have not ended raise EngineClosedError."""
        self._loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _as_list(self, prompt) -> tuple[list, bool]:
        if isinstance(prompt, str):
            return [prompt], True
        items = list(_plain(prompt, "prompt"))
        if items and all(isinstance(item, Iterable) for item in items):
            return items, False
        return [items], True

    def _params_list(self, params, count: int, overrides: dict) -> list[SamplingParams]:
        if not isinstance(params, list | tuple):
            return [self._merge(params, overrides)] * count
        if len(params) != count:
            raise ValueError(f"{len(params)} params for {count} prompts; give one for all or one for each")
        return [self._merge(own, overrides) for own in params]

    def _request(self, prompt, params: SamplingParams, on_chunk=None, where="prompt") -> Request:
        if params.stop and self.tokenizer is None:
            raise ValueError(f"{self.path}: stop strings need a tokenizer, and the checkpoint has none")
        self._check_block_length(params)
        ids = self._token_ids(prompt, where)
        total = len(ids) + params.max_new_tokens
        sizes = f"{where}: {len(ids)} prompt tokens + {params.max_new_tokens} new ones"
        if total > self.config.max_positions:
            raise CapacityError(f"{sizes} exceed the model's {self.config.max_positions} positions")
        if total > self.kv_cache_tokens:
            raise CapacityError(f"{sizes} exceed kv_cache_tokens={self.kv_cache_tokens}")
        transcript = Transcript(params, self.decoding.eos_token_ids, self.tokenizer)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        return Request(ids, params, seed, transcript, on_chunk)

    def _token_ids(self, prompt, where: str) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError(f"{self.path}: no tokenizer in the checkpoint; give token ids as the prompt")
            prompt = self.tokenizer.encode(prompt)
        ids = []
        for i, token in enumerate(_plain(prompt, where)):
            try:
                ids.append(index(token))
            except TypeError:
                raise TypeError(f"{where}[{i}] must be a token id (int), got {token!r}") from None
            if not 0 <= ids[-1] < self.config.vocab_size:
                vocabulary = f"[0, {self.config.vocab_size})"
                raise ValueError(f"{where}[{i}] is {ids[-1]}, outside the vocabulary {vocabulary}")
        if not ids:
            raise ValueError(f"{where} is empty; at least one token is needed")
        return ids

    def _merge(self, params: SamplingParams | None, overrides: dict) -> SamplingParams:
        if params is not None and not isinstance(params, SamplingParams):
            raise TypeError(f"params must be SamplingParams, got {params!r}")
        unknown = sorted(set(overrides) - set(PARAM_NAMES))
        if unknown:
            raise TypeError(f"unknown sampling parameter {unknown[0]!r}; known: {', '.join(PARAM_NAMES)}")
        return (params or self.default_params).override(**overrides)

    def _check_block_length(self, params: SamplingParams):
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


def _plain(prompt, where: str) -> Iterable:
    """The items of a prompt; tensors and arrays become lists."""
    prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(prompt, Iterable) or isinstance(prompt, bytes | Mapping):
        raise TypeError(f"{where} must be a str, a list of token ids or a list of either, got {prompt!r}")
    return prompt
