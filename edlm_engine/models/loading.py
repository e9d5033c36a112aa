"""From a checkpoint's tensors to a Transformer."""

from collections.abc import Callable

import torch

from .config import ModelConfig
from .families import TensorNames
from .linear import PackedLinear
from .transformer import Layer, Transformer


def load_transformer(
    config: ModelConfig,
    tensors,
    names: TensorNames,
    dtype,
    device="cpu",
    advance: Callable[[], None] = lambda: None,
) -> Transformer:
    """Build the model layer by layer, so that at most one layer exists twice in memory.

    tensors: has tensor(name, shape); advance is called after every layer.
    Raises CheckpointError for a missing or wrong-shaped tensor.
    """

    def get(name: str, *shape: int) -> torch.Tensor:
        return tensors.tensor(name, shape).to(dtype=dtype, device=device)

    body, hidden = names.body, config.hidden_size
    embedding = get(f"{body}.embed_tokens.weight", config.vocab_size, hidden)
    layers = []
    for i in range(config.num_layers):
        layers.append(_load_layer(config, get, f"{body}.layers.{i}."))
        advance()
    head = embedding if config.tied_head else get(names.head, config.vocab_size, hidden)
    return Transformer(config, embedding, layers, get(f"{body}.norm.weight", hidden), head)


def _load_layer(config: ModelConfig, get, prefix: str) -> Layer:
    hidden, inner = config.hidden_size, config.intermediate_size
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    sizes = {"q": config.q_size, "k": config.kv_size, "v": config.kv_size}

    def norm(name: str):
        return get(f"{attention}{name}.weight", config.head_dim) if config.qk_norm else None

    qkv = [get(f"{attention}{p}_proj.weight", n, hidden) for p, n in sizes.items()]
    gate_up = [get(f"{mlp}{p}_proj.weight", inner, hidden) for p in ("gate", "up")]
    bias = [get(f"{attention}{p}_proj.bias", n) for p, n in sizes.items()] if config.qkv_bias else None
    return Layer(
        input_norm=get(f"{prefix}input_layernorm.weight", hidden),
        qkv=PackedLinear(torch.cat(qkv)),
        qkv_bias=None if bias is None else torch.cat(bias),
        q_norm=norm("q_norm"),
        k_norm=norm("k_norm"),
        attention_out=PackedLinear(get(f"{attention}o_proj.weight", hidden, config.q_size)),
        mlp_norm=get(f"{prefix}post_attention_layernorm.weight", hidden),
        gate_up=PackedLinear(torch.cat(gate_up)),
        down=PackedLinear(get(f"{mlp}down_proj.weight", hidden, inner)),
    )
