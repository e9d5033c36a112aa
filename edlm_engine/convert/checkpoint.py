"""Read and write Hugging Face checkpoint folders: config.json, safetensors (one or sharded), tokenizer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edlm_engine.convert.model import Decoder, DecoderConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# What each architecture has besides its config keys: (bias on q, k and v; RMSNorm on query and key heads).
ARCHITECTURES = {"Qwen2ForCausalLM": (True, False), "Qwen3ForCausalLM": (False, True)}


def read_config(folder: Path) -> dict:
    """config.json as a dict; FileNotFoundError or ValueError says what is missing or broken."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a checkpoint folder holds config.json and *.safetensors")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def decoder_config(config: dict, where: str = "config.json") -> DecoderConfig:
    """The decoder's shape from a Qwen2, Qwen3 or EfficientDLM config; ValueError names the unfit key."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture == "EfficientDLM":
        switches = (bool(config.get("attention_bias", False)), bool(config.get("qk_norm", True)))
    elif architecture in ARCHITECTURES:
        switches = ARCHITECTURES[architecture]
    else:
        known = ", ".join([*ARCHITECTURES, "EfficientDLM"])
        raise ValueError(f"{where}: architecture {architecture!r} cannot be trained here; known: {known}")
    if architecture == "Qwen3ForCausalLM" and config.get("attention_bias"):
        raise ValueError(
            f"{where}: attention_bias is true, but a Qwen3 decoder without q/k/v bias was expected"
        )
    if config.get("use_sliding_window") or config.get("rope_scaling"):
        raise ValueError(f"{where}: use_sliding_window and rope_scaling are not supported in training")
    required = [name for name in list(DecoderConfig.__dataclass_fields__)[:6] if name not in config]
    if required:
        raise ValueError(f"{where}: missing {', '.join(required)}")
    heads = config["num_attention_heads"]
    rope_theta = (config.get("rope_parameters") or config).get("rope_theta", 1e4)
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope_theta),
        max_position_embeddings=config.get("max_position_embeddings", 32768),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        attention_bias=switches[0],
        qk_norm=switches[1],
    )


def shard_paths(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing")
    return [folder / name for name in names]


def load_decoder(folder: str | Path) -> tuple[Decoder, dict]:
    """(fp32 decoder, its config.json as a dict) from a checkpoint folder with `model.*` tensor names.

    Raises FileNotFoundError for absent files and ValueError naming the first tensor that is missing, of the
    wrong shape, or unknown.
    """
    folder = Path(folder)
    config = read_config(folder)
    decoder = Decoder(decoder_config(config, str(folder / "config.json")))
    expected = decoder.state_dict()
    found = set()
    for path in shard_paths(folder):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (a safe_open handle is no dict)
                    if name == "lm_head.weight" and decoder.config.tie_word_embeddings:
                        continue
                    if name not in expected:
                        raise ValueError(f"{path}: unknown tensor {name!r} for this config.json")
                    shape = tuple(file.get_slice(name).get_shape())
                    if shape != tuple(expected[name].shape):
                        raise ValueError(
                            f"{path}: {name} has shape {shape}, not {tuple(expected[name].shape)}"
                        )
                    expected[name].copy_(file.get_tensor(name))
                    found.add(name)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    missing = sorted(expected.keys() - found)
    if missing:
        raise ValueError(f"{folder}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    return decoder, config


def replace_file(path: Path, write) -> None:
    """Call write(temporary path), then rename it to `path`, so that `path` is never half written."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    temporary.chmod(0o644)
    os.replace(temporary, path)


def save_checkpoint(
    folder: str | Path,
    decoder: Decoder,
    config: dict,
    tokenizer_from: str | Path,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write config.json, model.safetensors (in `dtype`) and the tokenizer files found in `tokenizer_from`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: weight.detach().to("cpu", dtype).contiguous() for name, weight in decoder.state_dict().items()
    }
    replace_file(
        folder / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"})
    )
    for name in TOKENIZER_FILES:
        source = Path(tokenizer_from) / name
        if source.is_file() and source.resolve() != (folder / name).resolve():
            replace_file(folder / name, lambda path, source=source: shutil.copyfile(source, path))
    text = json.dumps({**config, "torch_dtype": str(dtype).removeprefix("torch.")}, indent=2) + "\n"
    replace_file(folder / "config.json", lambda path: path.write_text(text))
