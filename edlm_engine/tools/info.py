"""What `edlm info` shows."""

import os

import torch

from .. import __version__, ops
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.folder import bundled_models, resolve
from ..hardware import gpu
from ..hardware.machine import default_threads
from ..options import choose_device, choose_dtype
from ..printing import count
from .environment import set_variables


def build_rows() -> list[tuple[str, str]]:
    """(label, value) pairs on the build and the machine."""
    build = ops.build_info()
    cuda, unusable = "none: built without them", gpu.why_unusable(build)
    if build["cuda"]:
        cuda = "for " + ", ".join(build["cuda_architectures"])
        cuda += f"; not usable here: {unusable}" if unusable else ""
    device, threads = choose_device("auto"), min(torch.get_num_threads(), default_threads())
    return [
        ("edlm_engine", __version__),
        ("torch", f"{torch.__version__} (extension built for {build['torch_target']} and later)"),
        ("CPU kernels", f"{build['isa']} (compiled: {build['compiled_isas']})"),
        ("CUDA kernels", cuda),
        ("default device", device),
        ("default dtype", choose_dtype("auto", device)),
        ("threads", f"{threads} of {count(os.cpu_count() or 1, 'processor')}"),
        ("environment", ", ".join(set_variables()) or "none of its variables is set"),
        ("bundled models", ", ".join(bundled_models()) or "none"),
    ]


def model_rows(model: str) -> list[tuple[str, str]]:
    """(label, value) pairs on one checkpoint."""
    path = resolve(model)
    checkpoint = Checkpoint(path)
    config, decoding = checkpoint.model, checkpoint.decoding
    layers = count(config.num_layers, "layer")
    switches = {"QKV bias": config.qkv_bias, "QK-norm": config.qk_norm, "tied head": config.tied_head}
    rows = [
        ("model", str(path)),
        ("parameters", f"{config.num_parameters / 1e6:,.1f} million"),
        ("shape", f"{layers}, hidden {config.hidden_size}, inner {config.intermediate_size}"),
        ("heads", f"{config.num_heads} query, {config.num_kv_heads} key/value, size {config.head_dim}"),
        ("switches", ", ".join(name for name, on in switches.items() if on) or "none"),
        ("quantization", checkpoint.quantization or "none"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("positions", f"{config.max_positions:,}"),
        ("eos ids", ", ".join(map(str, decoding.eos_token_ids)) or "none"),
    ]
    if decoding.autoregressive:
        return [*rows, ("decoding", "autoregressive")]
    mask = (
        "missing: give Engine(..., mask_token_id=ID)"
        if decoding.mask_token_id is None
        else decoding.mask_token_id
    )
    return [
        *rows,
        ("decoding", "block diffusion" + (", token shift" if decoding.token_shift else "")),
        ("mask token id", str(mask)),
        ("block length", str(decoding.block_length)),
        ("prefill", decoding.prefill),
    ]
