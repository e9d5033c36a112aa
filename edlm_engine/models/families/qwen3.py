"""Qwen3 (arXiv 2505.09388): heads of a size of their own, an RMS norm on every query and key."""

from ..family import Family, autoregressive, dense_model


def read(reader, names):
    bias = reader.get("attention_bias", bool, False)
    model = dense_model(reader, qkv_bias=bias, out_bias=bias, qk_norm=True, head_dim=128)
    return model, autoregressive(reader, model)


FAMILY = Family(("Qwen3ForCausalLM",), ("qwen3",), read)
