"""Llama 2 and 3 (arXiv 2407.21783): no norms in attention, and biases only where the config asks for them."""

from ..family import Family, autoregressive, dense_model, refuse_window

POSITIONS = 2048  # transformers' default, where the file is silent


def read(reader, names):
    refuse_window(reader, None, POSITIONS)  # no Llama has one, but transformers keeps to it if the file does
    attention, mlp = (reader.get(key, bool, False) for key in ("attention_bias", "mlp_bias"))
    model = dense_model(
        reader, qkv_bias=attention, out_bias=attention, mlp_bias=mlp, qk_norm=False, max_positions=POSITIONS
    )
    return model, autoregressive(reader, model)


FAMILY = Family(("LlamaForCausalLM",), ("llama",), read)
