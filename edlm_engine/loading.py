"""From a model's name and the engine's options to everything an Engine is made of."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import gpu, ops
from .ahead import RunAhead
from .checkpoint import Checkpoint, DummyTensors, resolve
from .decoding.block_state import BlockState
from .device_loop import why_unsupported
from .errors import CheckpointError
from .kv_cache import PAGE_LENGTH, PagedKVCache
from .loop import EngineLoop
from .machine import available_memory
from .models.config import DecodingConfig, ModelConfig
from .models.families import PREFILLS
from .models.loading import load_transformer
from .progress import progress_bar
from .runner import Runner
from .scheduler import Scheduler
from .tokenizer import ChatTemplate, Tokenizer, load_chat_template, load_tokenizer

MAX_PROMPT_ROWS = 4096  # prompt rows of one forward: bounds its activations
STEPPINGS = ("eager", "static", "graph", "device")
DEFAULT_CONTEXT = 4096  # positions per sequence that the default cache has room for
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The keyword arguments of Engine; see there. Raises ValueError naming the one that is wrong."""

    device: str
    dtype: str
    load_format: str
    quantization: str | None
    block_length: int | None
    mask_token_id: int | None
    prefill: str | None
    fused_commit: bool
    max_batch_size: int
    kv_cache_tokens: int | None
    num_threads: int | None
    stepping: str

    def __post_init__(self):
        self._choice("device", ("auto", "cpu", "cuda"))
        self._choice("dtype", ("auto", *_DTYPES))
        self._choice("load_format", ("auto", "dummy"))
        self._choice("stepping", ("auto", *STEPPINGS))
        if self.prefill is not None:
            self._choice("prefill", PREFILLS)
        if self.quantization is not None:
            self._choice("quantization", ("int8", "fp8"))
        for name in ("block_length", "max_batch_size", "kv_cache_tokens", "num_threads"):
            value = getattr(self, name)
            optional = name != "max_batch_size"
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer{' or None' * optional}, got {value!r}")

    def _choice(self, name: str, known: tuple[str, ...]):
        value = getattr(self, name)
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What open_engine() puts together."""

    path: Path
    config: ModelConfig
    decoding: DecodingConfig
    device: str
    dtype: str
    quantization: str | None
    kv_cache_tokens: int
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    loop: EngineLoop


def open_engine(model, options: EngineOptions) -> EngineParts:
    """Load a checkpoint and put an engine together around it."""
    path = resolve(model)
    dummy = options.load_format == "dummy"
    checkpoint = Checkpoint(path, with_tensors=not dummy)
    config = checkpoint.model
    decoding = _decoding(checkpoint, options)
    device = choose_device(options.device, config)
    dtype = choose_dtype(options.dtype, device)
    quantization = choose_quantization(options.quantization, checkpoint, device)
    stepping = choose_stepping(options.stepping, device, options.fused_commit)
    where = torch.device(device)
    if device == "cuda":  # by its index: the stepping thread's current GPU may be another one
        where = torch.device(device, torch.cuda.current_device())
        gpu.check_weights_fit(config, _DTYPES[dtype], gpu.free_memory(where), bool(quantization))
    tokenizer = load_tokenizer(path)
    rows = max(MAX_PROMPT_ROWS, decoding.block_length)
    with progress_bar(f"loading {path.name}", config.num_layers) as advance:
        tensors = DummyTensors(device=where) if dummy else checkpoint
        transformer = load_transformer(
            config, tensors, checkpoint.names, _DTYPES[dtype], where, advance,
            quantization=quantization, stored=bool(checkpoint.quantization) and not dummy,
            rows=rows if device == "cuda" else 0,
        )  # fmt: skip
    checkpoint.close()
    slots = options.max_batch_size
    tokens = cache_tokens(config, options, _DTYPES[dtype], where)
    cache = PagedKVCache(config, tokens, slots, _DTYPES[dtype], where)
    apart = stepping != "eager"  # the host's side shows a step that is past
    state = BlockState(slots, decoding.block_length, decoding.mask_token_id, where, apart)
    scheduler = Scheduler(cache, state, decoding, fused_commit=options.fused_commit, max_rows=rows)
    runner = Runner(transformer, cache, state)
    ahead = None if stepping == "eager" else RunAhead(stepping, scheduler, runner, decoding)
    loop = EngineLoop(scheduler, runner, options.num_threads, ahead)
    return EngineParts(
        path, config, decoding, device, dtype, quantization, tokens, tokenizer, load_chat_template(path), loop
    )


def choose_device(device: str, config: ModelConfig | None = None) -> str:
    """ "cpu" or "cuda"; "auto" takes a GPU if there is one and the build has kernels for it and the model."""
    if device == "cpu":
        return "cpu"
    reason = gpu.why_unusable(ops.build_info(), config)
    if device == "cuda" and reason:
        raise ValueError(f"device='cuda': {reason}; use device='cpu'")
    return "cpu" if reason else "cuda"


def choose_stepping(stepping: str, device: str, fused_commit: bool) -> str:
    """ "auto": on a GPU the loop there, or where it knows none a graph per step; eager on the CPU, and where
    commits are not fused."""
    if stepping in ("graph", "device") and device == "cpu":
        raise ValueError(f"stepping={stepping!r} needs a GPU; use 'eager' or 'static'")
    if stepping not in ("auto", "eager") and not fused_commit:
        raise ValueError(f"stepping={stepping!r} fuses commits; use 'eager' with fused_commit=False")
    if stepping == "device" and (reason := why_unsupported()):
        raise ValueError(f"stepping='device': {reason}; use 'graph'")
    if stepping != "auto":
        return stepping
    if device == "cpu" or not fused_commit:
        return "eager"
    return "graph" if why_unsupported() else "device"


def choose_dtype(dtype: str, device: str) -> str:
    """ "auto": bfloat16 on a GPU and where oneDNN has native kernels for it, else float32."""
    if dtype == "float16" and device == "cpu":
        raise ValueError("dtype='float16': the CPU has no kernels for it; use 'bfloat16' or 'float32'")
    if dtype != "auto":
        return dtype
    native = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "float32"


def choose_quantization(asked: str | None, checkpoint: Checkpoint, device: str) -> str | None:
    """What is asked for, or what the checkpoint has. Raises ValueError where the two differ, and where fp8
    does not run."""
    stored = checkpoint.quantization
    if asked and stored and asked != stored:
        raise ValueError(
            f"quantization={asked!r}: the matrices of {checkpoint.folder} are {stored} already; leave it "
            f"out, or quantise the original with `edlm quantize --type {asked}`"
        )
    quantization = asked or stored
    if quantization != "fp8":
        return quantization
    reason = "the CPU has no kernels for it"
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        reason = gpu.why_no_fp8(ops.build_info()["cuda_architectures"], capability)
    if reason and stored:
        raise ValueError(
            f"{checkpoint.folder / 'config.json'}: the matrices are fp8: {reason}; quantise the original "
            "with `edlm quantize --type int8`"
        )
    if reason:
        raise ValueError(f"quantization='fp8': {reason}; use quantization='int8'")
    return quantization


def _decoding(checkpoint: Checkpoint, options: EngineOptions) -> DecodingConfig:
    """The checkpoint's decoding with the options' overrides."""
    decoding, config = checkpoint.decoding, checkpoint.model
    decoding = replace(decoding, prefill=options.prefill or decoding.prefill)
    if decoding.autoregressive:
        given = [n for n in ("block_length", "mask_token_id", "prefill") if getattr(options, n) is not None]
        if given:
            raise ValueError(f"{given[0]}: {checkpoint.folder} is an autoregressive checkpoint and has none")
        return decoding
    mask = decoding.mask_token_id if options.mask_token_id is None else options.mask_token_id
    where = f"{checkpoint.folder / 'config.json'}: "
    if mask is None:
        raise CheckpointError(where + "key 'mask_token_id' is missing; give Engine(..., mask_token_id=ID)")
    if not isinstance(mask, int) or isinstance(mask, bool) or not 0 <= mask < config.vocab_size:
        vocabulary = f"[0, {config.vocab_size})"
        raise CheckpointError(f"{where}mask_token_id {mask!r} is outside the vocabulary {vocabulary}")
    return replace(decoding, mask_token_id=mask, block_length=options.block_length or decoding.block_length)


def cache_tokens(config: ModelConfig, options: EngineOptions, dtype, device: torch.device) -> int:
    """Positions of the cache: as many as the options say, else room for max_batch_size sequences of up to
    DEFAULT_CONTEXT, as far as a quarter of the available memory goes, but for one such sequence always. On a
    GPU what is free there bounds both."""
    wanted, context = options.kv_cache_tokens, min(config.max_positions, DEFAULT_CONTEXT)
    default = -(-options.max_batch_size * context // PAGE_LENGTH) * PAGE_LENGTH
    if device.type == "cuda":
        free = gpu.free_memory(device)
        return gpu.cache_tokens(config, dtype, wanted or default, wanted is not None, free)
    per_token = 2 * config.num_layers * config.kv_size * dtype.itemsize
    affordable = max(available_memory() // 4 // per_token, context)
    return wanted or min(default, -(-affordable // PAGE_LENGTH) * PAGE_LENGTH)
