"""config.json of each checkpoint family -> ModelConfig and DecodingConfig, and its tensor names.

A family is an adapter of plain functions. Efficient-DLM keeps Qwen2's or Qwen3's tensors under `model.*`;
its siblings say `encoder.*` and `diffusion_head`.
"""

from dataclasses import dataclass

from ..config import DecodingConfig, ModelConfig
from ..errors import CheckpointError

PREFILLS = ("block_causal", "bidirectional", "causal")
DEFAULT_BLOCK_LENGTH = 32  # the paper's evaluation block of the 4B and 8B models (App. A)

_PREFILL_OF_PARADIGM = {
    "bidirectional": "bidirectional",
    "prefix_bidirectional": "bidirectional",
    "autoregressive": "causal",
    "block_diff": "block_causal",
    "efficient_block_diff": "block_causal",
    "sbd_block_diff": "block_causal",
}
_SHIFT_OF_DLM_TYPE = {"llada": False, "dream": True}
_DIFFUSION_ARCHITECTURES = {"EfficientDLM", "DiffEncoderModel"}
_AR_ARCHITECTURES = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Where a checkpoint keeps its tensors."""

    body: str  # prefix of the transformer
    head: str

    @classmethod
    def detect(cls, names) -> "TensorNames":
        """The naming that the checkpoint's own tensor names use (`names`: any container of them)."""
        body = "encoder" if "encoder.embed_tokens.weight" in names else "model"
        head = "diffusion_head.weight" if "diffusion_head.weight" in names else "lm_head.weight"
        return cls(body, head)


class ConfigReader:
    """Typed access to a config dict; every error names the file and the key."""

    def __init__(self, data: dict, path):
        self.data, self.path = data, path

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def get(self, key: str, kind, default=...):
        """The value of `key`, which must be of type `kind` (bool is no int); absent or null: the default."""
        value = self.data.get(key)
        if value is None:
            if default is ...:
                raise self.error(f"key {key!r} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"key {key!r} must be of type {kind.__name__}, got {value!r}")
        return value

    def size(self, key: str, default=...) -> int:
        value = self.get(key, int, default)
        if value < 1:
            raise self.error(f"key {key!r} must be at least 1, got {value}")
        return value

    def choice(self, key: str, table: dict, default):
        value = self.get(key, str, None)
        if value is None:
            return default
        if value not in table:
            raise self.error(f"key {key!r} is {value!r}; known: {', '.join(sorted(table))}")
        return table[value]


def read_config(data: dict, path, tensor_names=None) -> tuple[ModelConfig, DecodingConfig]:
    """Both configurations of a checkpoint.

    data: the parsed config.json; path: its file, for messages; tensor_names: names in the checkpoint, which
    decide about biases, QK-norm and the head where the config is silent (None: config only).
    Raises CheckpointError for unknown architectures and missing or wrong keys.
    """
    reader = ConfigReader(data, path)
    architectures = reader.get("architectures", list, [])
    model_type = reader.get("model_type", str, "")
    if model_type == "edlm" or _DIFFUSION_ARCHITECTURES & set(architectures):
        return _model_config(reader, tensor_names, "qwen3"), _diffusion_decoding(reader)
    for architecture in architectures:
        if architecture in _AR_ARCHITECTURES:
            model = _model_config(reader, tensor_names, _AR_ARCHITECTURES[architecture])
            return model, DecodingConfig(None, eos_ids(reader), 1, "causal", True)
    known = sorted(_DIFFUSION_ARCHITECTURES | set(_AR_ARCHITECTURES))
    found = f"architectures {architectures}, model_type {model_type!r}"
    raise reader.error(f"{found}: no such family here; known: {', '.join(known)}")


def _model_config(reader: ConfigReader, tensor_names, base: str) -> ModelConfig:
    heads = reader.size("num_attention_heads")
    kv_heads = reader.size("num_key_value_heads", heads)
    hidden = reader.size("hidden_size")
    if heads % kv_heads:
        raise reader.error(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    head_dim = reader.size("head_dim", hidden // heads)
    if head_dim % 16:
        raise reader.error(f"head_dim {head_dim} is no multiple of 16; the kernels need one")
    for key in ("hidden_size", "intermediate_size"):
        if reader.size(key) % 4:
            raise reader.error(f"{key} {reader.size(key)} is no multiple of 4; the kernels need one")
    activation = reader.get("hidden_act", str, "silu")
    if activation != "silu":
        raise reader.error(f"hidden_act is {activation!r}; only 'silu' has a kernel")
    if reader.get("use_sliding_window", bool, False):
        raise reader.error("use_sliding_window is true; sliding windows are not supported")
    qkv_bias, qk_norm, tied = _switches(reader, tensor_names, base)
    return ModelConfig(
        vocab_size=reader.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.size("intermediate_size"),
        num_layers=reader.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=reader.get("rms_norm_eps", float, 1e-6),
        rope_theta=_rope_theta(reader),
        max_positions=reader.size("max_position_embeddings", 32768),
        tied_head=tied,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )


def _switches(reader: ConfigReader, names, base: str) -> tuple[bool, bool, bool]:
    """(qkv_bias, qk_norm, tied_head): the tensors decide, else the config's keys, else the base family."""
    tied = reader.get("tie_word_embeddings", bool, False)
    if names is None:
        bias = reader.get("attention_bias", bool, base == "qwen2")
        return bias, reader.get("qk_norm", bool, base == "qwen3" and not bias), tied
    attention = f"{TensorNames.detect(names).body}.layers.0.self_attn."
    has_head = TensorNames.detect(names).head in names
    return f"{attention}q_proj.bias" in names, f"{attention}q_norm.weight" in names, tied or not has_head


def _rope_theta(reader: ConfigReader) -> float:
    rope = reader.get("rope_parameters", dict, None) or reader.get("rope_scaling", dict, None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise reader.error(f"rope type {kind!r} is not supported; only 'default' is")
    theta = reader.data.get("rope_theta")
    theta = rope.get("rope_theta") if theta is None else theta
    return ConfigReader({"rope_theta": theta}, reader.path).get("rope_theta", float, 1e6)


def eos_ids(reader: ConfigReader) -> tuple[int, ...]:
    """eos_token_id as a tuple: config files hold one id, a list, or nothing."""
    value = reader.data.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise reader.error(f"key 'eos_token_id' must be an id or a list of ids, got {value!r}")
    return tuple(ids)


def _diffusion_decoding(reader: ConfigReader) -> DecodingConfig:
    # the paradigm's default is what the released models are indicated to use
    return DecodingConfig(
        mask_token_id=reader.get("mask_token_id", int, None),
        eos_token_ids=eos_ids(reader),
        block_length=reader.size("block_size", DEFAULT_BLOCK_LENGTH),
        prefill=reader.choice("dlm_paradigm", _PREFILL_OF_PARADIGM, "bidirectional"),
        token_shift=reader.choice("dlm_type", _SHIFT_OF_DLM_TYPE, False),
    )
