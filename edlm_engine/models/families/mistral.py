"""Mistral (arXiv 2310.06825) where it is Llama's shape: without a sliding window."""

from ..family import Family, autoregressive, dense_model

WINDOW, POSITIONS = 4096, 131072  # transformers' defaults, where the file is silent


def read(reader, names):
    window = reader.data.get("sliding_window", WINDOW)
    if window is not None and reader.size("sliding_window", WINDOW) < reader.size(
        "max_position_embeddings", POSITIONS
    ):
        raise reader.error(f"sliding_window is {window} (null: none); sliding windows are not supported")
    model = dense_model(reader, qkv_bias=False, qk_norm=False, kv_heads=8, max_positions=POSITIONS)
    return model, autoregressive(reader, model)


FAMILY = Family(("MistralForCausalLM",), ("mistral",), read)
