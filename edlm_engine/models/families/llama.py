"""Llama 2 and 3 (arXiv 2407.21783): neither biases nor norms in attention."""

from ..family import Family, autoregressive, dense_model


def read(reader, names):
    for key in ("attention_bias", "mlp_bias"):
        if reader.get(key, bool, False):
            raise reader.error(f"{key} is true; these biases are not supported")
    return dense_model(reader, qkv_bias=False, qk_norm=False, max_positions=2048), autoregressive(reader)


FAMILY = Family(("LlamaForCausalLM",), ("llama",), read)
