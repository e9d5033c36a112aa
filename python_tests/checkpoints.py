"""Small random checkpoints for tests: real folders with config.json, safetensors and a tokenizer."""

import json

import torch
from safetensors.torch import save_file

VOCAB = 128
MASK = 127
EOS = 126
TEXT_IDS = range(1, 120)  # ids that a prompt of the tests may hold

SHAPES = {
    "qwen3": {"qk_norm": True, "attention_bias": False, "tie_word_embeddings": True},
    "qwen2": {"qk_norm": False, "attention_bias": True, "tie_word_embeddings": False},
}


def config_dict(shape="qwen3", **changes) -> dict:
    """config.json of a block-diffusion checkpoint; `changes` override keys, None removes one."""
    config = {
        "architectures": ["EfficientDLM"],
        "model_type": "edlm",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "mask_token_id": MASK,
        "eos_token_id": EOS,
        "block_size": 16,
        "dlm_paradigm": "block_diff",
        **SHAPES[shape],
    }
    config |= changes
    return {key: value for key, value in config.items() if value is not None}


def random_weights(config: dict, seed=0, body="model", head="lm_head", scale=0.35) -> dict[str, torch.Tensor]:
    """Weights wide enough that confidences spread over (0, 1) instead of staying uniform."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]

    def normal(*shape, std=scale):
        return torch.randn(shape, generator=generator) * std

    weights = {f"{body}.embed_tokens.weight": normal(config["vocab_size"], hidden, std=0.5)}
    for i in range(config["num_hidden_layers"]):
        p = f"{body}.layers.{i}."
        for name, rows, columns in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
            weights[f"{p}self_attn.{name}_proj.weight"] = normal(rows, columns)
            if config["attention_bias"] and name != "o":
                weights[f"{p}self_attn.{name}_proj.bias"] = normal(rows)
        if config["qk_norm"]:
            for name in ("q_norm", "k_norm"):
                weights[f"{p}self_attn.{name}.weight"] = 1 + normal(config["head_dim"])
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            weights[f"{p}mlp.{name}_proj.weight"] = normal(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{p}{name}.weight"] = 1 + normal(hidden)
    weights[f"{body}.norm.weight"] = 1 + normal(hidden)
    if not config["tie_word_embeddings"]:
        weights[f"{head}.weight"] = normal(config["vocab_size"], hidden, std=0.5)
    return weights


def write_tokenizer(folder):
    """A word-level tokenizer over the test vocabulary: id i is the word "wi"."""
    import tokenizers

    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([f"w{EOS}", f"w{MASK}"])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_checkpoint(folder, config=None, weights=None, tokenizer=True, **save_options):
    """Write a checkpoint folder and return it."""
    config = config or config_dict()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights or random_weights(config, **save_options), str(folder / "model.safetensors"))
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_ar_checkpoint(folder, shape="qwen3", **changes):
    """A plain Qwen2 or Qwen3 checkpoint, as transformers writes it."""
    name = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[shape]
    weights = random_weights(config_dict(shape, **changes), seed=changes.get("seed", 0))
    config = config_dict(
        shape, architectures=[name], model_type=shape, mask_token_id=None, block_size=None, dlm_paradigm=None,
        qk_norm=None, attention_bias=None, **changes,
    )  # fmt: skip
    return write_checkpoint(folder, config, weights)
