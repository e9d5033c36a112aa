"""Qwen2 and 2.5 (arXiv 2407.10671): biases on the projections of queries, keys and values."""

from ..family import Family, autoregressive, dense_model


def read(reader, names):
    model = dense_model(reader, qkv_bias=True, qk_norm=False)
    return model, autoregressive(reader, model)


FAMILY = Family(("Qwen2ForCausalLM",), ("qwen2",), read)
