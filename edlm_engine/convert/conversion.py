"""Turn an autoregressive checkpoint into a block-diffusion one (Efficient-DLM, arXiv 2512.14067 §2-3)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.checkpoints.folder import read_json, resolve
from edlm_engine.convert.checkpoint import check_trainable, decoder_of, save_checkpoint
from edlm_engine.convert.config import ConversionConfig
from edlm_engine.convert.data import Batches, Documents, data_files, read_documents
from edlm_engine.convert.files import TOKENIZER_FILES, check_output
from edlm_engine.convert.loss import Batch, diffusion_loss, noisy_batch
from edlm_engine.convert.mask_token import MaskToken, choose_mask
from edlm_engine.convert.model import Decoder
from edlm_engine.convert.train import STATE_FILE, identity_of, read_state, train
from edlm_engine.models.config_reader import ConfigReader
from edlm_engine.models.families import find_family

OURS = (STATE_FILE, "model.safetensors", *TOKENIZER_FILES, "config.json")  # files of a run in its folder


def check_folders(out: Path, data: str | Path) -> None:
    """Raise OSError or ValueError unless `out` is new, empty or a stopped run's, and `data` readable."""
    if (out / "config.json").exists():
        raise FileExistsError(f"{out} already holds a checkpoint; choose another folder or remove it")
    check_output(out, OURS if (out / STATE_FILE).exists() else ())
    data_files(data)


def check_run(checkpoint: Checkpoint, out: Path, config: ConversionConfig) -> None:
    """Raise ValueError unless this checkpoint can be converted, and a run that `out` has was of this kind."""
    check_trainable(checkpoint)
    if config.length > checkpoint.model.max_positions:
        positions = f"{checkpoint.model.max_positions} positions of {checkpoint.folder}"
        raise ValueError(f"length {config.length} is more than the {positions}")
    if (out / STATE_FILE).exists():
        read_state(out / STATE_FILE, identity_of(config), mapped=True)


def separator(checkpoint: Checkpoint) -> int:
    """The eos id that ends documents: the first one of the checkpoint."""
    ids = checkpoint.decoding.eos_token_ids
    if not ids:
        where = checkpoint.folder / "config.json"
        raise ValueError(f"{where}: eos_token_id is missing; documents are separated by it")
    return ids[0]


def checksum(decoder: Decoder) -> int:
    """Of all weights: two models of the same shape are not the same base."""
    found = 0
    for weight in decoder.state_dict().values():
        found = zlib.crc32(weight.detach().numpy().view(np.uint8), found)
    return found


def noise_generator(seed: int, step: int) -> torch.Generator:
    """Of a step's noise. torch's generator heeds 32 bits of its seed, so run and step are mixed before."""
    (mixed,) = np.random.SeedSequence((seed, step)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed))


def converted_config(
    checkpoint: Checkpoint, decoder: Decoder, config: ConversionConfig, mask_token_id: int
) -> dict:
    """The base's config.json with the block-diffusion keys of Efficient-DLM checkpoints.

    Raises ValueError where such a config.json cannot say what the base's does.
    """
    path, shape = checkpoint.folder / "config.json", decoder.config
    hf_config, eos = read_json(path), checkpoint.decoding.eos_token_ids
    converted = {
        **hf_config,
        "architectures": ["EfficientDLM"],
        "model_type": "edlm",
        "vocab_size": shape.vocab_size,
        "head_dim": shape.head_dim,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": hf_config.get("max_position_embeddings", shape.max_positions),
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied_head,
        "attention_bias": shape.qkv_bias,
        "qk_norm": shape.qk_norm,
        # generation_config.json, which may name more of them, is not taken over.
        "eos_token_id": list(eos) if len(eos) > 1 else eos[0],
        "mask_token_id": mask_token_id,
        "block_size": config.block_size,
        "dlm_paradigm": "bidirectional" if config.attention == "bidirectional" else "block_diff",
        "dlm_type": "dream" if config.token_shift else "llada",
        "tok_mask_half_life_ratio": config.half_life_ratio,
    }
    reader = ConfigReader(converted, path)
    read, _ = find_family(reader).read(reader, decoder.state_dict())
    if read != shape:
        raise ValueError(f"{path}: as an EfficientDLM it would be read as {read}, not as {shape}")
    return converted


def convert(
    base: str | Path,
    out: str | Path,
    data: str | Path,
    config: ConversionConfig | None = None,
    *,
    stop_after: int | None = None,
    every: tuple[int, Callable[[Decoder, int], None]] | None = None,
    hub: dict | None = None,
) -> bool:
    """Convert the autoregressive checkpoint `base` (a folder, a bundled name or a hub id; `hub`: see
    `resolve`) into the block-diffusion folder `out`.

    data: see `read_documents`. The state of the run is kept in `out`/resume.pt until it is done, and the
    same call goes on from there; `stop_after` stops early, at that step, and so does Ctrl-C
    (KeyboardInterrupt with a message). `every` = (n, f) calls f(model, step) each n steps. True when `out`
    holds the finished checkpoint (config.json is written last). Raises FileExistsError when it already did or
    holds other files, ValueError or OSError for unfit inputs before any training, and FloatingPointError
    when the training diverges.
    """
    config, out = (config or ConversionConfig()).with_precision(), Path(out)
    device = config.torch_device()
    check_folders(out, data)
    checkpoint = Checkpoint(resolve(base, hub))
    check_run(checkpoint, out, config)
    eos, mask = separator(checkpoint), choose_mask(checkpoint, config.mask_token_id)
    documents = read_documents(data, checkpoint.folder, eos, checkpoint.model.vocab_size)
    decoder = decoder_of(checkpoint)
    identity = {"base_checksum": checksum(decoder), "data_checksum": documents.checksum}
    if mask.new:
        decoder.add_token(mask.id)
    hf_config = converted_config(checkpoint, decoder, config, mask.id)
    checkpoint.close()
    print(plan(documents, mask, config), flush=True)
    finished = train(
        decoder.to(device).train(),
        loss_function(decoder, documents, mask.id, config),
        config,
        out / STATE_FILE,
        title="conversion",
        stop_after=stop_after,
        every=every and (every[0], lambda step: every[1](decoder, step)),
        identity=identity,
        guessing=math.log(decoder.config.vocab_size),
    )
    if finished:
        save_checkpoint(out, decoder, hf_config, checkpoint.folder, mask=mask)
        (out / STATE_FILE).unlink()
    return finished


def plan(documents: Documents, mask: MaskToken, config: ConversionConfig) -> str:
    """What is about to be done, in a line."""
    token = f"{mask.text!r:.80} (id {mask.id}" if mask.text else f"id {mask.id}"
    token += ", new" * mask.new + ")" * bool(mask.text)
    precision = "bf16" if config.bf16 else "fp32"
    return (
        f"documents: {len(documents):,}, tokens: {len(documents.ids):,}, mask token: {token}, steps: "
        f"{config.steps:,} of {config.rows} x {config.length} tokens, {precision} on "
        f"{config.torch_device().type}"
    )


def loss_function(
    decoder: Decoder, documents: Documents, mask_token_id: int, config: ConversionConfig
) -> Callable[[int], Tensor]:
    """The loss of a step, as a function of the step and the decoder's weights alone."""
    device = config.torch_device()
    batches = Batches(documents, config.length, config.rows, config.seed, config.prompt_weight)
    hidden = torch.compile(decoder.hidden) if config.compile else decoder.hidden

    def loss_of(step: int) -> Tensor:
        batch = noisy_batch(batches(step), config, noise_generator(config.seed, step))
        batch = Batch(**{name: part.to(device) for name, part in vars(batch).items()})
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            return diffusion_loss(hidden, decoder.head_weight, batch, mask_token_id, config)

    return loss_of
