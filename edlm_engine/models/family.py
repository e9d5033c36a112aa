"""What a family of checkpoints is, and what most of them share."""

from collections.abc import Callable, Container
from dataclasses import dataclass

from ..config import DecodingConfig, ModelConfig
from ..errors import shown
from .config_reader import ConfigReader, eos_ids
from .read_rope import read_rope


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Where a checkpoint keeps its tensors: the prefix of the transformer, and the head's matrix."""

    body: str = "model"
    head: str = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Family:
    """What config.json and tensor names mean in one family of checkpoints.

    architectures, model_types: the words of config.json by which it is known; the second decides where the
        first are not given.
    read: from config.json, and the names of the checkpoint's tensors (None: not known), both configurations.
    tensor_names: how a checkpoint with these names has named them.
    """

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    read: Callable[[ConfigReader, Container[str] | None], tuple[ModelConfig, DecodingConfig]]
    tensor_names: Callable[[Container[str]], TensorNames] = lambda names: TensorNames()

    @property
    def autoregressive(self) -> bool:
        """Whether transformers has the family, by its naming."""
        return all(name.endswith("ForCausalLM") for name in self.architectures)


def autoregressive(reader: ConfigReader, model: ModelConfig) -> DecodingConfig:
    """One token after the other: blocks of one position, each predicted by the row before it."""
    return DecodingConfig(
        mask_token_id=None,
        eos_token_ids=eos_ids(reader, model.vocab_size),
        block_length=1,
        prefill="causal",
        token_shift=True,
    )


def dense_model(
    reader: ConfigReader,
    *,
    qkv_bias: bool,
    qk_norm: bool,
    out_bias: bool = False,
    mlp_bias: bool = False,
    tied_head: bool = False,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    rope_theta: float = 10_000.0,
    max_positions: int = 32768,
) -> ModelConfig:
    """The decoder with a dense, gated MLP in every layer. tied_head: whether it is, whatever the file says.

    head_dim, kv_heads, rope_theta, max_positions: the family's defaults where the file is silent; None is
    hidden_size / num_attention_heads, and as many as num_attention_heads, which null in the file means, too.
    Sizes have bounds far above those of real models, so that no product of them overflows.
    """
    heads, hidden = reader.size("num_attention_heads", most=2**16), reader.size("hidden_size", most=2**20)
    if kv_heads is None or "num_key_value_heads" in reader.data:
        kv_heads = heads
    kv_heads = reader.size("num_key_value_heads", kv_heads)
    if heads % kv_heads:
        raise reader.error(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    head_dim = reader.size("head_dim", head_dim or hidden // heads, most=2**12)
    _check_kernels(reader, head_dim)
    max_positions = reader.size("max_position_embeddings", max_positions)
    rope, max_positions = read_rope(reader, rope_theta, max_positions, head_dim)
    return ModelConfig(
        vocab_size=reader.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.size("intermediate_size", most=2**22),
        num_layers=reader.size("num_hidden_layers", most=2**16),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=reader.positive("rms_norm_eps", 1e-6),
        rope=rope,
        max_positions=max_positions,
        tied_head=tied_head or reader.get("tie_word_embeddings", bool, False),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
    )


def refuse_window(reader: ConfigReader, default: int | None, positions: int):
    """Refuse a sliding window that is shorter than the positions. default, positions: of the family, where
    the file is silent."""
    window = reader.data.get("sliding_window", default)
    if window is not None and reader.size("sliding_window", default) < reader.size(
        "max_position_embeddings", positions
    ):
        raise reader.error(
            f"sliding_window is {shown(window)} (null: none); sliding windows are not supported"
        )


def _check_kernels(reader: ConfigReader, head_dim: int):
    """Refuse what the kernels cannot do."""
    if head_dim % 16:
        raise reader.error(f"head_dim {head_dim} is no multiple of 16; the kernels need one")
    for key in ("hidden_size", "intermediate_size"):
        if reader.size(key) % 4:
            raise reader.error(f"{key} {reader.size(key)} is no multiple of 4; the kernels need one")
    activation = reader.get("hidden_act", str, "silu")
    if activation != "silu":
        raise reader.error(f"hidden_act is {shown(activation)}; only 'silu' has a kernel")
    if reader.get("use_sliding_window", bool, False):
        raise reader.error("use_sliding_window is true; sliding windows are not supported")
    for kind in reader.get("layer_types", list, []):
        if kind != "full_attention":
            raise reader.error(f"layer_types holds {shown(kind)}; only 'full_attention' is supported")
