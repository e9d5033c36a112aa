"""Efficient-DLM (arXiv 2512.14067): a Qwen2 or Qwen3 that was trained on into a block-diffusion model.

Its tensors lie under `model.*`; its siblings say `encoder.*` and `diffusion_head`.
"""

from collections.abc import Container

from ...config import DecodingConfig, ModelConfig
from ..config_reader import ConfigReader, eos_ids
from ..family import Family, TensorNames, dense_model

DEFAULT_BLOCK_LENGTH = 32  # the paper's evaluation block of the 4B and 8B models (App. A)
MOST_BLOCK_LENGTH = 16384  # every slot of the batch keeps the state of so many positions

_PREFILL_OF_PARADIGM = {
    "bidirectional": "bidirectional",
    "prefix_bidirectional": "bidirectional",
    "autoregressive": "causal",
    "block_diff": "block_causal",
    "efficient_block_diff": "block_causal",
    "sbd_block_diff": "block_causal",
}
_SHIFT_OF_DLM_TYPE = {"llada": False, "dream": True}


def tensor_names(names: Container[str]) -> TensorNames:
    body = "encoder" if "encoder.embed_tokens.weight" in names else "model"
    head = "diffusion_head.weight" if "diffusion_head.weight" in names else "lm_head.weight"
    return TensorNames(body, head)


def read(reader: ConfigReader, names: Container[str] | None) -> tuple[ModelConfig, DecodingConfig]:
    out_bias = mlp_bias = tied = False
    if names is None:
        bias = reader.get("attention_bias", bool, False)
        norm = reader.get("qk_norm", bool, not bias)
    else:  # the tensors know what the config file need not say
        found = tensor_names(names)
        layer = f"{found.body}.layers.0."
        bias, norm = f"{layer}self_attn.q_proj.bias" in names, f"{layer}self_attn.q_norm.weight" in names
        out_bias, mlp_bias = f"{layer}self_attn.o_proj.bias" in names, f"{layer}mlp.down_proj.bias" in names
        tied = found.head not in names
    model = dense_model(
        reader, qkv_bias=bias, out_bias=out_bias, mlp_bias=mlp_bias, qk_norm=norm, tied_head=tied
    )
    return model, _decoding(reader, model)


def _decoding(reader: ConfigReader, model: ModelConfig) -> DecodingConfig:
    # the paradigm's default is what the released models are indicated to use
    return DecodingConfig(
        mask_token_id=reader.get("mask_token_id", int, None),
        eos_token_ids=eos_ids(reader, model.vocab_size),
        block_length=reader.size("block_size", DEFAULT_BLOCK_LENGTH, most=MOST_BLOCK_LENGTH),
        prefill=reader.choice("dlm_paradigm", _PREFILL_OF_PARADIGM, "bidirectional"),
        token_shift=reader.choice("dlm_type", _SHIFT_OF_DLM_TYPE, False),
    )


FAMILY = Family(("EfficientDLM", "DiffEncoderModel"), ("edlm",), read, tensor_names)
