"""Checkpoint folders as the trainer reads and writes them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.checkpoints.folder import read_json
from edlm_engine.convert.model import Decoder
from edlm_engine.errors import CheckpointError

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


def load_decoder(folder: str | Path) -> tuple[Decoder, dict]:
    """(fp32 decoder, its config.json as a dict) from a checkpoint folder of any family that the engine reads.

    Raises CheckpointError naming the file, and the key or the first tensor that is missing, of the wrong
    shape, or unknown.
    """
    checkpoint = Checkpoint(Path(folder))
    if checkpoint.quantization:
        raise CheckpointError(f"{folder}: is quantised to {checkpoint.quantization}; training needs floats")
    names = checkpoint.names
    wanted = Decoder.tensor_shapes(checkpoint.model)
    source = {name: name.replace("model.", f"{names.body}.", 1) for name in wanted}
    source["lm_head.weight"] = names.head
    weights = {name: checkpoint.tensor(source[name], shape) for name, shape in wanted.items()}
    checkpoint.check_all_read()
    decoder = Decoder(checkpoint.model)
    decoder.load_state_dict(weights)
    return decoder, read_json(checkpoint.folder / "config.json")


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
