"""One decoder-only transformer; the families differ by the switches of ModelConfig."""

from dataclasses import dataclass

import torch

from .. import ops
from ..config import ModelConfig
from ..steps.inputs import ForwardInputs
from ..steps.kv_cache import PagedKVCache
from .cublaslt import ProductTuner
from .heads import Head, QuantizedHead
from .linears import Linear


@dataclass(slots=True)
class Layer:
    """The weights of one layer; q, k, v and gate, up are merged into one matrix each."""

    input_norm: torch.Tensor  # [hidden]
    qkv: Linear  # [q_size + 2 kv_size, hidden]
    qkv_bias: torch.Tensor | None  # [q_size + 2 kv_size]
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None  # [head_dim]
    attention_out: Linear  # [hidden, q_size]
    attention_out_bias: torch.Tensor | None  # [hidden]
    mlp_norm: torch.Tensor  # [hidden]
    gate_up: Linear  # [2 intermediate, hidden]
    gate_up_bias: torch.Tensor | None  # [2 intermediate]
    down: Linear  # [hidden, intermediate]
    down_bias: torch.Tensor | None  # [hidden]


def activation_widths(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of a row of every activation of a forward."""
    return {
        "hidden": (config.hidden_size,),
        "normed": (config.hidden_size,),
        "qkv": (config.q_size + 2 * config.kv_size,),
        "q": (config.num_heads, config.head_dim),
        "attended": (config.num_heads, config.head_dim),
        "gate_up": (2 * config.intermediate_size,),
        "activated": (config.intermediate_size,),
        "delta": (config.hidden_size,),
    }


class Workspace:
    """Buffers of rows, kept between forwards and grown when more rows come."""

    def __init__(self, widths: dict[str, tuple[int, ...]], dtype, device):
        self._widths = widths
        self._options = {"dtype": dtype, "device": device}
        self._buffers: dict[str, torch.Tensor] = {}
        self._capacity = 0

    def rows(self, count: int) -> dict[str, torch.Tensor]:
        """The buffers' first `count` rows, contents undefined."""
        if count > self._capacity or not self._buffers:
            self._capacity = 1 << (count - 1).bit_length()
            self._buffers = {
                name: torch.empty(self._capacity, *width, **self._options)
                for name, width in self._widths.items()
            }
        return {name: buffer[:count] for name, buffer in self._buffers.items()}

    def buffers(self) -> list[torch.Tensor]:
        return list(self._buffers.values())


class Transformer:
    """Weights and forward pass.

    embedding: [vocab, hidden]; products: what its dense layers multiply with on a GPU; positions: the most
    that a sequence has (None: as many as the checkpoint was made for, which may be millions).
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: torch.Tensor,
        layers: list[Layer],
        final_norm: torch.Tensor,
        head: Head | QuantizedHead,
        products: ProductTuner | None = None,
        positions: int | None = None,
    ):
        self.config = config
        self.embedding, self.layers, self.final_norm, self.head = embedding, layers, final_norm, head
        self.products = products
        widths = activation_widths(config)
        head_widths = {name: widths[name] for name in ("hidden", "delta", "normed")}
        self._workspace = Workspace(widths, embedding.dtype, embedding.device)
        self._head_workspace = Workspace(head_widths, embedding.dtype, embedding.device)
        self._rope = rope_table(config, positions or config.max_positions).to(embedding.device)

    def forward(self, inputs: ForwardInputs, cache: PagedKVCache) -> torch.Tensor:
        """Run all rows, leave their keys and values in the cache, and return [head rows, hidden]:
        the final-normed hidden states of the rows whose statistics are wanted."""
        config, scale = self.config, self.config.head_dim**-0.5
        buffers = self._workspace.rows(len(inputs.token_ids))
        x, normed, q, attended = (buffers[k] for k in ("hidden", "normed", "q", "attended"))
        torch.index_select(self.embedding, 0, inputs.token_ids, out=x)
        delta = None
        for i, layer in enumerate(self.layers):
            keys, values = cache.keys[i], cache.values[i]
            quantized = layer.qkv.quantized_input(len(x))
            ops.rms_norm(x, delta, layer.input_norm, config.rms_norm_eps, normed, *quantized)
            ops.qkv_prepare(
                layer.qkv(normed, buffers["qkv"], quantized), layer.qkv_bias, layer.q_norm, layer.k_norm,
                self._rope, inputs.slots, inputs.positions, cache.page_table, keys, values, q,
                config.rms_norm_eps,
            )  # fmt: skip
            ops.block_attention(q, keys, values, inputs.query_blocks, cache.page_table, scale, attended)
            delta = layer.attention_out(attended.view(len(x), -1), buffers["delta"])
            add_bias(delta, layer.attention_out_bias)
            quantized = layer.gate_up.quantized_input(len(x))
            ops.rms_norm(x, delta, layer.mlp_norm, config.rms_norm_eps, normed, *quantized)
            gate_up, activated = layer.gate_up(normed, buffers["gate_up"], quantized), buffers["activated"]
            add_bias(gate_up, layer.gate_up_bias)
            quantized = layer.down.quantized_input(len(x))
            ops.silu_mul(gate_up, activated, *quantized)
            delta = layer.down(activated, buffers["delta"], quantized)
            add_bias(delta, layer.down_bias)
        return self._final_norm(x, delta, inputs.head_rows)

    def buffers(self) -> list[torch.Tensor]:
        """The memory of activations as it is now: a larger forward replaces it."""
        return [*self._workspace.buffers(), *self._head_workspace.buffers()]

    def _final_norm(self, x, delta, head_rows) -> torch.Tensor:
        buffers = self._head_workspace.rows(len(head_rows))
        selected, normed = buffers["hidden"], buffers["normed"]
        if len(head_rows):
            torch.index_select(x, 0, head_rows, out=selected)
            torch.index_select(delta, 0, head_rows, out=buffers["delta"])
            ops.rms_norm(selected, buffers["delta"], self.final_norm, self.config.rms_norm_eps, normed)
        return normed


def add_bias(x: torch.Tensor, bias: torch.Tensor | None):
    """In place, where there is one: few models have these, so no kernel knows of them."""
    if bias is not None:
        x.add_(bias)


def rope_table(config: ModelConfig, positions: int) -> torch.Tensor:
    """fp32 [positions, head_dim]: cos of every angle, then sin."""
    rows = torch.arange(positions, dtype=torch.float32, device="cpu")
    angles = torch.outer(rows, config.rope.frequencies(config.head_dim))
    return torch.cat([angles.cos(), angles.sin()], dim=1) * config.rope.amplitude
