"""What fits into the memory of a machine or of its GPU: weights, and positions of the cache."""

import torch

from ..config import ModelConfig
from ..hardware import gpu
from ..hardware.machine import available_memory
from ..steps.kv_cache import PAGE_LENGTH

DEFAULT_CONTEXT = 4096  # positions per sequence that the default cache has room for
CACHE_SHARE = 0.8  # of the memory that the weights leave: activations and logits need the rest
GIB = 2**30


def check_weights_fit(config: ModelConfig, dtype: torch.dtype, free: int, quantized: bool = False):
    """free: bytes on the GPU; quantized: matrices have a byte per weight. Raises torch.OutOfMemoryError."""
    embedding = config.vocab_size * config.hidden_size
    needed = config.num_parameters * dtype.itemsize
    if quantized:  # all but the embedding, beside which a tied head lies once more
        rest = config.num_parameters - (0 if config.tied_head else embedding)
        needed = embedding * dtype.itemsize + rest
    if needed > free:
        raise torch.OutOfMemoryError(
            f"the weights need {needed / GIB:.1f} GiB on the GPU, {free / GIB:.1f} GiB are free; "
            "end what else runs there or use device='cpu'"
        )


def cache_tokens(
    config: ModelConfig, max_batch_size: int, wanted: int | None, dtype, device: torch.device
) -> int:
    """Positions of the cache: `wanted`, else room for max_batch_size sequences of up to
    DEFAULT_CONTEXT, as far as a quarter of the available memory goes, but for one such sequence always. On a
    GPU what is free there bounds both."""
    context = min(config.max_positions, DEFAULT_CONTEXT)
    default = -(-max_batch_size * context // PAGE_LENGTH) * PAGE_LENGTH
    if device.type == "cuda":
        free = gpu.free_memory(device)
        return cache_tokens_on_gpu(config, dtype, wanted or default, wanted is not None, free)
    per_token = 2 * config.num_layers * config.kv_size * dtype.itemsize
    affordable = max(available_memory() // 4 // per_token, context)
    return wanted or min(default, -(-affordable // PAGE_LENGTH) * PAGE_LENGTH)


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
