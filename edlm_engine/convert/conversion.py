"""Turn an autoregressive checkpoint into a block-diffusion one (Efficient-DLM, arXiv 2512.14067 §2-3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from edlm_engine.checkpoints.folder import read_json
from edlm_engine.convert.checkpoint import load_decoder, save_checkpoint
from edlm_engine.convert.data import Batches, Rows, read_documents
from edlm_engine.convert.masking import (
    causal_block_mask,
    draw_masks,
    noisy_slots,
    number_blocks,
    training_mask,
)
from edlm_engine.convert.model import Decoder
from edlm_engine.convert.train import TrainConfig, train

ATTENTIONS = ("block_diff", "no_clean_context", "bidirectional")


@dataclass(frozen=True)
class ConversionConfig(TrainConfig):
    """The conversion's settings besides those of `TrainConfig`; the defaults are the paper's, at ablation
    scale.

    block_size: block length in training. half_life_ratio: λ of position-dependent masking, None for uniform.
    attention: "block_diff" (noisy and clean halves), or for ablations "no_clean_context" (one noisy
    sequence, block-causal) and "bidirectional" (one noisy sequence, all see all). token_shift: logits at i
    are for token i + 1, as in AR models. sequence_noise: one noise level for the whole row instead of one
    per block. min_level: smallest noise level. mask_token_id: an existing row of the embedding; None takes
    the tokenizer's mask token. align_blocks: begin a block at every completion, as decoding does, and
    not only every `block_size` tokens of the packed row, as the paper does. (No block begins at the document
    after it: a block that ended with the answer would tell where the answer ends.) views: noisy copies of
    each row, which share one clean half and spread their noise levels evenly. noisy_length: None noises the
    whole row; a number noises only the blocks with tokens of full weight (completions), at most so many
    tokens a row.
    """

    final_learning_rate: float = 3e-6
    block_size: int = 16
    half_life_ratio: float | None = 0.1
    attention: str = "block_diff"
    token_shift: bool = False
    sequence_noise: bool = False
    min_level: float = 1e-3
    mask_token_id: int | None = None
    align_blocks: bool = False
    views: int = 1
    noisy_length: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.block_size <= self.length:
            raise ValueError(f"block_size must be in 1 … length ({self.length}), got {self.block_size}")
        if self.half_life_ratio is not None and not 0 < self.half_life_ratio <= 1:
            raise ValueError(
                f"half_life_ratio must be in (0, 1] or None (uniform), got {self.half_life_ratio}"
            )
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")
        if not 0 < self.min_level < 1:
            raise ValueError(f"min_level must be in (0, 1), got {self.min_level}")
        if self.views < 1:
            raise ValueError(f"views must be at least 1, got {self.views}")
        if self.noisy_length is not None and not self.block_size <= self.noisy_length <= self.length:
            raise ValueError(
                f"noisy_length must be in block_size … length ({self.block_size} … {self.length}) or None, "
                f"got {self.noisy_length}"
            )
        plain = self.views == 1 and self.noisy_length is None
        if not plain and (self.attention != "block_diff" or self.token_shift):
            raise ValueError("views and noisy_length are for attention 'block_diff' without token_shift")


@dataclass(frozen=True)
class Batch:
    """One step's rows and noise. (rows, length): ids, loss weights, block numbers. slots (rows, width): which
    tokens are noised, -1 for none. (rows, views, width): masked, noise level."""

    ids: Tensor
    weights: Tensor
    blocks: Tensor
    slots: Tensor
    masked: Tensor
    level: Tensor


def noisy_batch(rows: Rows, config: ConversionConfig, generator: torch.Generator) -> Batch:
    """Number the blocks of packed rows and draw their masks."""
    ids, weights = torch.from_numpy(rows.ids).long(), torch.from_numpy(rows.weights)
    starts = torch.from_numpy(rows.starts).clone()
    if not config.align_blocks:
        starts[:, 1:] = False
    starts[:, 0] = True
    blocks = number_blocks(starts, config.block_size)
    whole_row = torch.arange(config.length).expand_as(blocks)
    slots = noisy_slots(blocks, weights == 1, config.noisy_length) if config.noisy_length else whole_row
    noise_block = config.length if config.sequence_noise else config.block_size
    noise_blocks = torch.zeros_like(blocks) if config.sequence_noise else blocks
    masked, level = draw_masks(
        noise_blocks.repeat_interleave(config.views, 0),
        noise_block,
        config.half_life_ratio,
        generator,
        config.min_level,
        config.views,
    )
    pick = slots.clamp_min(0)[:, None].expand(-1, config.views, -1)
    masked, level = (x.unflatten(0, (-1, config.views)).gather(2, pick) for x in (masked, level))
    return Batch(ids, weights, blocks, slots, masked & (slots >= 0)[:, None], level)


def predictors(config: ConversionConfig, batch: Batch) -> Tensor:
    """(rows, views · width): the output row that predicts each noised token; -1 where none does."""
    rows, views, width = batch.masked.shape
    at = torch.arange(views * width, device=batch.ids.device).expand(rows, -1)
    if not config.token_shift:
        return at
    shifted = at - 1
    if config.attention == "block_diff":
        # The token before a block is clean by the time the block is decoded, so its clean row predicts.
        begins = batch.blocks != batch.blocks.roll(1, 1)
        shifted = torch.where(begins, shifted + width, shifted)
    shifted[:, 0] = -1
    return shifted


def diffusion_loss(
    hidden: Callable[[Tensor, Tensor, Tensor | tuple[Tensor, Tensor]], Tensor],
    head: Tensor,
    batch: Batch,
    mask_token_id: int,
    config: ConversionConfig,
) -> Tensor:
    """-Σ over masked i of weight_i / t_i · log p(x_i), over Σ of all noised weights: Eq. 1 per noised token.

    hidden: (ids, positions, allow) -> final states; see `Decoder.hidden`.
    """
    slots = batch.slots.clamp_min(0)
    targets = batch.ids.gather(1, slots)[:, None].expand_as(batch.masked)
    weights = batch.weights.gather(1, slots) * (batch.slots >= 0)
    weights = weights[:, None].expand_as(batch.masked)
    inputs = targets.masked_fill(batch.masked, mask_token_id).flatten(1)
    positions = slots.repeat(1, config.views)
    if config.attention == "block_diff":
        clean = torch.arange(config.length, device=slots.device).expand_as(batch.ids)
        inputs, positions = torch.cat((inputs, batch.ids), 1), torch.cat((positions, clean), 1)
        allow = training_mask(batch.blocks, batch.slots)
    else:
        all_one = config.attention == "bidirectional"
        allow = causal_block_mask(torch.zeros_like(batch.blocks) if all_one else batch.blocks)
    states = hidden(inputs, positions, allow)
    predictor = predictors(config, batch)
    row, at = (batch.masked.flatten(1) & (predictor >= 0)).nonzero(as_tuple=True)
    logits = F.linear(states[row, predictor[row, at]], head)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets.flatten(1)[row, at], reduction="none")
    return (losses * (weights / batch.level).flatten(1)[row, at]).sum() / weights.sum()


def special_ids(base: Path, hf_config: dict, config: ConversionConfig) -> tuple[int, int]:
    """(eos id, mask id) of the base checkpoint; ValueError says which file lacks which and how to give it."""
    eos = hf_config.get("eos_token_id")
    if isinstance(eos, list):
        eos = eos[0]
    if eos is None:
        raise ValueError(f"{base / 'config.json'}: eos_token_id is missing; documents are separated by it")
    mask = config.mask_token_id
    if mask is None:
        mask = tokenizer_mask_id(base)
    if mask is None:
        raise ValueError(
            f"{base}: the tokenizer names no mask token; pass mask_token_id, an existing id that is unused"
        )
    if not 0 <= mask < hf_config["vocab_size"]:
        raise ValueError(f"mask_token_id {mask} is outside the vocabulary of {hf_config['vocab_size']}")
    return eos, mask


def tokenizer_mask_id(base: Path) -> int | None:
    settings = base / "tokenizer_config.json"
    named = json.loads(settings.read_text()).get("mask_token") if settings.is_file() else None
    token = named.get("content") if isinstance(named, dict) else named
    if not (base / "tokenizer.json").is_file():
        return None
    return Tokenizer.from_file(str(base / "tokenizer.json")).token_to_id(token or "<|mask|>")


def converted_config(hf_config: dict, decoder: Decoder, config: ConversionConfig, mask_token_id: int) -> dict:
    """The base's config.json with the block-diffusion keys of Efficient-DLM checkpoints."""
    shape = decoder.config
    return {
        **hf_config,
        "architectures": ["EfficientDLM"],
        "model_type": "edlm",
        "head_dim": shape.head_dim,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": hf_config.get("max_position_embeddings", shape.max_positions),
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied_head,
        "attention_bias": shape.qkv_bias,
        "qk_norm": shape.qk_norm,
        "mask_token_id": mask_token_id,
        "block_size": config.block_size,
        "dlm_paradigm": "bidirectional" if config.attention == "bidirectional" else "block_diff",
        "dlm_type": "dream" if config.token_shift else "llada",
        "tok_mask_half_life_ratio": config.half_life_ratio,
    }


def convert(
    base: str | Path,
    out: str | Path,
    data: str | Path,
    config: ConversionConfig | None = None,
    *,
    stop_after: int | None = None,
    every: tuple[int, Callable[[Decoder, int], None]] | None = None,
) -> bool:
    """Convert the autoregressive checkpoint folder `base` into the block-diffusion folder `out`.

    data: see `read_documents`. The state of the run is kept in `out`/resume.pt until it is done, and the
    same call goes on from there; `stop_after` stops early, at that step. `every` = (n, f) calls f(model,
    step) each n steps. True when `out` holds the finished checkpoint (config.json is written last). Raises
    FileExistsError when it already did, and ValueError or FileNotFoundError for unfit inputs before any
    training.
    """
    base, out, config = Path(base), Path(out), config or ConversionConfig()
    if (out / "config.json").exists():
        raise FileExistsError(f"{out} already holds a checkpoint; choose another folder or remove it")
    eos, mask = special_ids(base, read_json(base / "config.json"), config)
    decoder, hf_config = load_decoder(base)
    documents = read_documents(data, base / "tokenizer.json", eos, decoder.config.vocab_size)
    device = config.torch_device()
    decoder.to(device).train()
    batches = Batches(documents, config.length, config.rows, config.seed, config.prompt_weight)
    hidden = torch.compile(decoder.hidden) if config.compile else decoder.hidden
    generator = torch.Generator()

    def loss_of(step: int) -> Tensor:
        generator.manual_seed((config.seed << 32) + step)
        batch = noisy_batch(batches(step), config, generator)
        batch = Batch(**{name: part.to(device) for name, part in vars(batch).items()})
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            return diffusion_loss(hidden, decoder.head_weight, batch, mask, config)

    evaluate = every and (every[0], lambda step: every[1](decoder, step))
    state_file = out / "resume.pt"
    finished = train(
        decoder, loss_of, config, state_file, title="conversion", stop_after=stop_after, every=evaluate
    )
    if finished:
        save_checkpoint(out, decoder, converted_config(hf_config, decoder, config, mask), base)
        state_file.unlink()
    return finished
