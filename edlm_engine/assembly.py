"""From a model's name and the engine's options to everything an Engine is made of."""

import logging
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from .checkpoints.chat_template import ChatTemplate, load_chat_template
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.dummy import DummyTensors
from .checkpoints.folder import resolve
from .checkpoints.tokenizer import Tokenizer, load_tokenizer
from .config import DecodingConfig, ModelConfig
from .core.memory import cache_tokens, check_weights_fit, most_positions
from .core.observers import Observers
from .core.runner import Runner
from .core.scheduler import Scheduler
from .core.stepping_thread import SteppingThread
from .device_led.run_ahead import RunAhead
from .hardware import gpu
from .hardware.machine import available_memory
from .models.weights import load_transformer
from .options import (
    DTYPES,
    EngineOptions,
    choose_decoding,
    choose_device,
    choose_dtype,
    choose_quantization,
    choose_stepping,
)
from .progress import progress_bar
from .steps.block_state import BlockState
from .steps.kv_cache import PagedKVCache

_log = logging.getLogger("edlm_engine")
MAX_PROMPT_ROWS = 4096  # prompt rows of one forward: bounds its activations


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
    loop: SteppingThread


def open_engine(model, options: EngineOptions) -> EngineParts:
    """Load a checkpoint and put an engine together around it."""
    path, begin = resolve(model, options.hub), perf_counter()
    _log.info("loading %s", path)
    dummy = options.load_format == "dummy"
    checkpoint = Checkpoint(path, with_tensors=not dummy)
    config = checkpoint.model
    decoding = choose_decoding(checkpoint, options)
    device = choose_device(options.device, config)
    dtype = choose_dtype(options.dtype, device)
    quantization = choose_quantization(options.quantization, checkpoint, device)
    stepping = choose_stepping(options.stepping, device)
    where = torch.device(device)
    if where.type == "cuda":
        if where.index is None:
            where = torch.device(device, torch.cuda.current_device())
        torch.cuda.set_device(where)  # of this thread, which is the engine's own
        check_weights_fit(config, DTYPES[dtype], gpu.free_memory(where), bool(quantization))
    elif dummy:  # no file bounds what config.json asks for
        check_weights_fit(config, DTYPES[dtype], available_memory(), bool(quantization), on_gpu=False)
    tokenizer = load_tokenizer(path)
    rows, slots = max(MAX_PROMPT_ROWS, decoding.block_length), options.max_batch_size
    with progress_bar(f"loading {path.name}", config.num_layers) as tick:
        tensors = DummyTensors(device=where) if dummy else checkpoint
        transformer = load_transformer(
            config, tensors, checkpoint.names, DTYPES[dtype], where, tick,
            quantization=quantization, stored=bool(checkpoint.quantization) and not dummy,
            rows=rows if where.type == "cuda" else 0,
            positions=most_positions(config, slots, options.kv_cache_tokens),
        )  # fmt: skip
    if not dummy:
        checkpoint.check_all_read()
    checkpoint.close()
    tokens = cache_tokens(config, slots, options.kv_cache_tokens, DTYPES[dtype], where)
    cache = PagedKVCache(config, tokens, slots, DTYPES[dtype], where)
    apart = stepping != "eager"  # the host's side shows a step that is past
    state = BlockState(slots, decoding.block_length, decoding.mask_token_id, where, apart)
    observers = Observers()
    scheduler = Scheduler(cache, state, decoding, max_rows=rows, observers=observers)
    runner = Runner(transformer, cache, state, observers)
    leader = None if stepping == "eager" else RunAhead(stepping, scheduler, runner, decoding)
    loop = SteppingThread(scheduler, runner, options.num_threads, leader, observers, options.max_waiting)
    _log.info(
        "loaded %s in %.1f s: %s, %s, %s, stepping %s, %d positions of K/V cache, %d threads",
        path, perf_counter() - begin, device, dtype, quantization or "not quantised", stepping, tokens,
        loop.num_threads,
    )  # fmt: skip
    return EngineParts(
        path, config, decoding, device, dtype, quantization, tokens, tokenizer, load_chat_template(path), loop
    )
