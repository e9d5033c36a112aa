"""From a checkpoint's tensors to a Transformer."""

from collections.abc import Callable

import torch

from ..config import ModelConfig
from ..hardware.machine import trim_memory
from .cublaslt import open_products
from .family import TensorNames
from .heads import Head, QuantizedHead
from .linears import GpuChoices, QuantizedRows, make_linear
from .quantization import DTYPES, QuantizedWeight, check_columns, concatenate, quantize_weight
from .transformer import Layer, Transformer


class Weights:
    """A checkpoint's tensors as a model wants them.

    tensors: has tensor(name, shape, dtype) and close(). quantized: the type that matrices of linear layers
        become, int8 or float8_e4m3fn (None: dtype, as everything else); stored: they are of it already, with
        their scales beside them.
    """

    def __init__(self, tensors, dtype, device, quantized: torch.dtype | None, *, stored: bool):
        self.tensors, self.dtype, self.device = tensors, dtype, device
        self.quantized, self.stored = quantized, stored

    def get(self, name: str, *shape: int, kept: bool = False) -> torch.Tensor:
        """kept: the model uses the tensor as it is, so it must not stay mapped: the file may change, and a
        mapping keeps what else was read through it in memory."""
        tensor = self.tensors.tensor(name, shape)
        on_cpu = torch.device(self.device).type == "cpu"
        return tensor.to(dtype=self.dtype, device=self.device, copy=len(shape) == 1 or (kept and on_cpu))

    def matrix(self, name: str, *shape: int, kept: bool = False) -> torch.Tensor | QuantizedWeight:
        """The weight of a linear layer, [outputs, inputs]; kept: see get()."""
        if not self.quantized:
            return self.get(name, *shape, kept=kept)
        if not self.stored:
            return quantize_weight(self.tensors.tensor(name, shape).to(self.device), self.quantized)
        scale = self.tensors.tensor(f"{name}_scale", shape[:1]).float()
        values = self.tensors.tensor(name, shape, self.quantized)
        return QuantizedWeight(values.to(self.device), scale.to(self.device))

    def merged(self, parts: list[tuple[str, int]], inputs: int) -> torch.Tensor | QuantizedWeight:
        """Matrices (name, outputs) of the same inputs, one below the other."""
        matrices = [self.matrix(name, outputs, inputs) for name, outputs in parts]
        return concatenate(matrices) if isinstance(matrices[0], QuantizedWeight) else torch.cat(matrices)


def load_transformer(
    config: ModelConfig,
    tensors,
    names: TensorNames,
    dtype,
    device="cpu",
    tick: Callable[[], None] = lambda: None,
    *,
    quantization: str | None = None,
    stored: bool = False,
    rows: int = 0,
    positions: int | None = None,
) -> Transformer:
    """Build the model layer by layer, so that at most one layer exists twice in memory.

    tensors: has tensor(name, shape, dtype) and close(), which is called after every layer and lets go of the
    mapped file; so is tick. quantization: "int8" or "fp8"; stored: whether the tensors are that already.
    rows: the most that a forward will have, as far as is known: buffers of quantised rows hold so many.
    positions: the most that a sequence will have (None: as many as the checkpoint was made for).
    Raises CheckpointError for a missing or wrong-shaped tensor, ValueError for what cannot be quantised.
    """
    if quantization:
        check_columns(config)
    weights = Weights(tensors, dtype, device, DTYPES.get(quantization), stored=stored)
    columns = max(config.hidden_size, config.q_size, config.intermediate_size)
    bytes_of = torch.float8_e4m3fn if quantization == "fp8" else torch.uint8
    quantized_rows = QuantizedRows(columns, bytes_of, device, rows if quantization else 0)
    choices = GpuChoices(open_products(torch.device(device)))
    body, hidden = names.body, config.hidden_size
    embedding = weights.get(f"{body}.embed_tokens.weight", config.vocab_size, hidden, kept=True)
    tensors.close()
    head = _load_head(
        config, weights, names, embedding, quantized_rows
    )  # the largest matrix, while most memory is free
    layers = []
    for i in range(config.num_layers):
        layers.append(_load_layer(config, weights, f"{body}.layers.{i}.", quantized_rows, choices))
        tensors.close()
        trim_memory()
        tick()
    final_norm = weights.get(f"{body}.norm.weight", hidden)
    return Transformer(config, embedding, layers, final_norm, head, choices.products, positions)


def _load_head(
    config: ModelConfig, weights: Weights, names: TensorNames, embedding, quantized_rows: QuantizedRows
) -> Head | QuantizedHead:
    tied = config.tied_head and not weights.stored  # a quantised head lies beside its embedding
    if tied and not weights.quantized:
        return Head(embedding)
    name = f"{names.body}.embed_tokens.weight" if tied else names.head
    matrix = weights.matrix(name, config.vocab_size, config.hidden_size, kept=True)
    return QuantizedHead(matrix, quantized_rows) if isinstance(matrix, QuantizedWeight) else Head(matrix)


def _load_layer(
    config: ModelConfig, weights: Weights, prefix: str, quantized_rows: QuantizedRows, choices: GpuChoices
) -> Layer:
    hidden, inner, get = config.hidden_size, config.intermediate_size, weights.get
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    sizes = {"q": config.q_size, "k": config.kv_size, "v": config.kv_size}

    def norm(name: str):
        return get(f"{attention}{name}.weight", config.head_dim) if config.qk_norm else None

    def bias(there: bool, of: str, **sizes: int):
        """Of projections of attention or MLP, one behind the other."""
        return torch.cat([get(f"{of}{name}_proj.bias", n) for name, n in sizes.items()]) if there else None

    def linear(name: str, outputs: int, inputs: int):
        return make_linear(weights.matrix(name, outputs, inputs), quantized_rows, choices)

    qkv = weights.merged([(f"{attention}{p}_proj.weight", n) for p, n in sizes.items()], hidden)
    gate_up = weights.merged([(f"{mlp}{p}_proj.weight", inner) for p in ("gate", "up")], hidden)
    return Layer(
        input_norm=get(f"{prefix}input_layernorm.weight", hidden),
        qkv=make_linear(qkv, quantized_rows, choices),
        qkv_bias=bias(config.qkv_bias, attention, **sizes),
        q_norm=norm("q_norm"),
        k_norm=norm("k_norm"),
        attention_out=linear(f"{attention}o_proj.weight", hidden, config.q_size),
        attention_out_bias=bias(config.out_bias, attention, o=hidden),
        mlp_norm=get(f"{prefix}post_attention_layernorm.weight", hidden),
        gate_up=make_linear(gate_up, quantized_rows, choices),
        gate_up_bias=bias(config.mlp_bias, mlp, gate=inner, up=inner),
        down=linear(f"{mlp}down_proj.weight", hidden, inner),
        down_bias=bias(config.mlp_bias, mlp, down=hidden),
    )
