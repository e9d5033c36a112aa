"""What fits into the memory of a machine or of its GPU: weights, and positions of the cache."""

import torch

from ..config import ModelConfig
from ..hardware import gpu
from ..hardware.machine import available_memory
from ..steps.kv_cache import PAGE_LENGTH

DEFAULT_CONTEXT = 4096  # positions per sequence that the default cache has room for
CACHE_SHARE = 0.8  # of the memory that the weights leave: activations and logits need the rest
GIB = 2**30


def most_positions(config: ModelConfig, max_batch_size: int, wanted: int | None) -> int:
    """What one sequence can have at most in a cache_tokens() cache, whatever memory there will be for it."""
    return min(config.max_positions, wanted or _default_tokens(config, max_batch_size))


def _default_tokens(config: ModelConfig, max_batch_size: int) -> int:
    context = min(config.max_positions, DEFAULT_CONTEXT)
    return -(-max_batch_size * context // PAGE_LENGTH) * PAGE_LENGTH


def check_weights_fit(
    config: ModelConfig, dtype: torch.dtype, free: int, quantized: bool = False, *, on_gpu: bool = True
):
    """free: bytes there; quantized: matrices have a byte per weight. Raises torch.OutOfMemoryError."""
    embedding = config.vocab_size * config.hidden_size
    needed = config.num_parameters * dtype.itemsize
    if quantized:  # all but the embedding, beside which a tied head lies once more
        rest = config.num_parameters - (0 if config.tied_head else embedding)
        needed = embedding * dtype.itemsize + rest
    if needed > free:
        remedy = "end what else runs there or use device='cpu'" if on_gpu else "take a smaller model"
        sizes = f"{needed / GIB:.1f} GiB{' on the GPU' * on_gpu}, {free / GIB:.1f} GiB are free"
        raise torch.OutOfMemoryError(f"the weights need {sizes}; {remedy}")


def cache_tokens(
    config: ModelConfig, max_batch_size: int, wanted: int | None, dtype, device: torch.device
) -> int:
    """Positions of the cache: `wanted`, else room for max_batch_size sequences of up to
    DEFAULT_CONTEXT, as far as a quarter of the available memory goes, but for one such sequence always. On a
    GPU what is free there bounds both. Raises torch.OutOfMemoryError where they do not fit."""
    default = _default_tokens(config, max_batch_size)
    if device.type == "cuda":
        free = gpu.free_memory(device)
        return cache_tokens_on_gpu(config, dtype, wanted or default, wanted is not None, free)
    per_token = 2 * config.num_layers * config.kv_size * dtype.itemsize
    free = available_memory()
    affordable = max(free // 4 // per_token, min(config.max_positions, DEFAULT_CONTEXT))
    tokens = wanted or min(default, -(-affordable // PAGE_LENGTH) * PAGE_LENGTH)
    if tokens * per_token > free:
        sizes = f"{tokens * per_token / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"
        room = f"there is room for {free // per_token} positions"
        raise torch.OutOfMemoryError(f"kv_cache_tokens={tokens} needs {sizes}; {room}")
    return tokens


def cache_tokens_on_gpu(
    config: ModelConfig, dtype: torch.dtype, wanted: int, exactly: bool, free: int
) -> int:
    """Positions of a cache in `free` bytes on the GPU: `wanted`, or as many as fit unless they are wanted
    exactly. Raises torch.OutOfMemoryError if they, or one page, do not fit."""
    per_token = 2 * config.num_layers * config.kv_size * dtype.itemsize
    fitting = int(free * CACHE_SHARE) // per_token // PAGE_LENGTH * PAGE_LENGTH
    if wanted <= fitting:
        return wanted
    if exactly or not fitting:
        name = "kv_cache_tokens=" if exactly else "a cache of "
        raise torch.OutOfMemoryError(
            f"{name}{wanted} needs {wanted * per_token / GIB:.1f} GiB on the GPU; the weights leave "
            f"{free / GIB:.1f} GiB, room for {fitting} positions"
        )
    return fitting
