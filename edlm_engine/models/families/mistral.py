"""Mistral (arXiv 2310.06825) where it is Llama's shape: without a sliding window."""

from ..family import Family, autoregressive, dense_model, refuse_window

WINDOW, POSITIONS = 4096, 131072  # transformers' defaults, where the file is silent


def read(reader, names):
    refuse_window(reader, WINDOW, POSITIONS)
    model = dense_model(reader, qkv_bias=False, qk_norm=False, kv_heads=8, max_positions=POSITIONS)
    return model, autoregressive(reader, model)


FAMILY = Family(("MistralForCausalLM",), ("mistral",), read)
