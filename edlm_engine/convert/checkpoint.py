"""Checkpoint folders as the trainer reads and writes them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.checkpoints.folder import read_json
from edlm_engine.convert.files import copy_tokenizer
from edlm_engine.convert.mask_token import MaskToken, add_to_tokenizer
from edlm_engine.convert.model import Decoder
from edlm_engine.errors import CheckpointError
from edlm_engine.files import replace_file


def load_decoder(folder: str | Path) -> tuple[Decoder, dict]:
    """(fp32 decoder, its config.json as a dict) from a checkpoint folder of any family that the engine reads.

    Raises CheckpointError naming the file, and the key or the first tensor that is missing, of the wrong
    shape, or unknown.
    """
    checkpoint = Checkpoint(Path(folder))
    return decoder_of(checkpoint), read_json(checkpoint.folder / "config.json")


def decoder_of(checkpoint: Checkpoint) -> Decoder:
    """The fp32 decoder with a checkpoint's weights. The files are asked for every tensor before anything of
    the config's sizes is made."""
    check_trainable(checkpoint)
    names = checkpoint.names
    weights = {}
    for name, shape in Decoder.tensor_shapes(checkpoint.model):
        source = names.head if name == "lm_head.weight" else name.replace("model.", f"{names.body}.", 1)
        weights[name] = checkpoint.tensor(source, shape)
    checkpoint.check_all_read()
    decoder = Decoder(checkpoint.model).float()
    decoder.load_state_dict(weights)
    return decoder


def check_trainable(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a quantised checkpoint."""
    if checkpoint.quantization:
        found = f"{checkpoint.folder}: is quantised to {checkpoint.quantization}"
        raise CheckpointError(f"{found}; training needs floats")


def save_checkpoint(
    folder: str | Path,
    decoder: Decoder,
    config: dict,
    tokenizer_from: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    mask: MaskToken | None = None,
) -> None:
    """Write model.safetensors (in `dtype`), the tokenizer files found in `tokenizer_from`, and config.json at
    last. A new `mask` token is added to the tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: weight.detach().to("cpu", dtype).contiguous() for name, weight in decoder.state_dict().items()
    }

    def write_tensors(path: Path) -> None:
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes files that their owner alone can read

    replace_file(folder / "model.safetensors", write_tensors)
    copy_tokenizer(Path(tokenizer_from), folder)
    if mask and mask.new and mask.text:
        add_to_tokenizer(folder, mask)
    stored = str(dtype).removeprefix("torch.")
    config = {**config, "torch_dtype": stored} | ({"dtype": stored} if "dtype" in config else {})
    text = json.dumps(config, indent=2) + "\n"
    replace_file(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
