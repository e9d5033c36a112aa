"""A tiny base of ten tokens for conversions, its data, and settings that take a moment."""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from edlm_engine.convert import ConversionConfig
from edlm_engine.convert.checkpoint import save_checkpoint
from edlm_engine.convert.model import Decoder
from edlm_engine.models.families import read_config

VOCABULARY = {"<|endoftext|>": 0, "<|mask|>": 1, **{letter: i + 2 for i, letter in enumerate("abcdefgh")}}
MASK = 1
QUICK = ConversionConfig(
    steps=6,
    rows=2,
    length=12,
    block_size=4,
    learning_rate=1e-3,
    final_learning_rate=1e-4,
    device="cpu",
    bf16=False,
)
BASE_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 10,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}


def tiny_decoder(dtype=torch.float32, **changes):
    model = Decoder(read_config({**BASE_CONFIG, **changes}, "config.json")[0])
    return model.initialise(torch.Generator().manual_seed(0)).to(dtype)


def write_tokenizer(folder, tokens=VOCABULARY):
    tokenizer = Tokenizer(models.WordLevel(dict(tokens), unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_base(folder):
    """The tiny decoder as a Qwen3 checkpoint, whose tokenizer names its mask token."""
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"mask_token": "<|mask|>"}')
    save_checkpoint(folder, tiny_decoder(), BASE_CONFIG, folder, torch.float32)
    return folder


def write_data(path):
    """Documents of 5, 7 and 9 tokens with a prompt, and one without."""
    lines = [json.dumps({"prompt": "a b c", "completion": "d e " * (i % 3 + 1)}) for i in range(20)]
    path.write_text("\n".join([*lines, json.dumps({"text": "f g h"})]) + "\n")
    return path
