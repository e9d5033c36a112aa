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

from edlm_engine.convert.checkpoint import load_decoder, read_config, save_checkpoint
from edlm_engine.convert.data import Batches, read_documents
from edlm_engine.convert.masking import causal_block_mask, draw_masks, training_mask
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
    the tokenizer's mask token.
    """

    final_learning_rate: float = 3e-6
    block_size: int = 16
    half_life_ratio: float | None = 0.1
    attention: str = "block_diff"
    token_shift: bool = False
    sequence_noise: bool = False
    min_level: float = 1e-3
    mask_token_id: int | None = None

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


class Layout:
    """The input a row of tokens becomes, and which output row predicts which token: fixed for a whole run."""

    def __init__(self, config: ConversionConfig, device: torch.device):
        at = torch.arange(config.length)
        self.clean_context = config.attention == "block_diff"
        if self.clean_context:
            self.allow = training_mask(config.length, config.block_size)
            self.positions = torch.cat((at, at))
        else:
            whole = config.length if config.attention == "bidirectional" else config.block_size
            self.allow, self.positions = causal_block_mask(config.length, whole), at
        self.predictor = at
        if config.token_shift:
            # The token before a block is clean by the time the block is decoded, so its clean row predicts.
            from_clean = self.clean_context & (at % config.block_size == 0)
            self.predictor = torch.where(from_clean, at - 1 + config.length, at - 1)
        self.predictable = torch.ones(config.length, dtype=torch.bool)
        self.predictable[0] = not config.token_shift
        for name in ("allow", "positions", "predictor", "predictable"):
            setattr(self, name, getattr(self, name).to(device))

    def inputs(self, ids: Tensor, masked: Tensor, mask_token_id: int) -> Tensor:
        noisy = ids.masked_fill(masked, mask_token_id)
        return torch.cat((noisy, ids), 1) if self.clean_context else noisy


def diffusion_loss(
    hidden: Callable[[Tensor, Tensor, Tensor], Tensor],
    head: Tensor,
    layout: Layout,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    mask_token_id: int,
) -> Tensor:
    """-Σ over masked i of weight_i / t_i · log p(x_i), over Σ of all weights: Eq. 1 for each token of the
    row.

    batch: ids, weights, masked, level, each (rows, length); hidden: (ids, positions, allow) -> final states.
    """
    ids, weights, masked, level = batch
    states = hidden(layout.inputs(ids, masked, mask_token_id), layout.positions, layout.allow)
    row, at = (masked & layout.predictable).nonzero(as_tuple=True)
    logits = F.linear(states[row, layout.predictor[at]], head)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, ids[row, at].long(), reduction="none")
    return (losses * (weights / level)[row, at]).sum() / weights.sum()


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
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "attention_bias": shape.attention_bias,
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
    """Convert the Qwen2- or Qwen3-shaped checkpoint folder `base` into the block-diffusion folder `out`.

    data: see `read_documents`. The state of the run is kept in `out`/resume.pt until it is done, and the
    same call goes on from there; `stop_after` stops early, at that step. `every` = (n, f) calls f(model,
    step) each n steps. True when `out` holds the finished checkpoint (config.json is written last). Raises
    FileExistsError when it already did, and ValueError or FileNotFoundError for unfit inputs before any
    training.
    """
    base, out, config = Path(base), Path(out), config or ConversionConfig()
    if (out / "config.json").exists():
        raise FileExistsError(f"{out} already holds a checkpoint; choose another folder or remove it")
    eos, mask = special_ids(base, read_config(base), config)
    decoder, hf_config = load_decoder(base)
    documents = read_documents(data, base / "tokenizer.json", eos, decoder.config.vocab_size)
    device = config.torch_device()
    decoder.to(device).train()
    batches = Batches(documents, config.length, config.rows, config.seed, config.prompt_weight)
    layout = Layout(config, device)
    hidden = torch.compile(decoder.hidden) if config.compile else decoder.hidden
    generator = torch.Generator()

    def loss_of(step: int) -> Tensor:
        generator.manual_seed((config.seed << 32) + step)
        noise_block = config.length if config.sequence_noise else config.block_size
        masks = draw_masks(
            config.rows, config.length, noise_block, config.half_life_ratio, generator, config.min_level
        )
        batch = tuple(part.to(device) for part in (*map(torch.from_numpy, batches(step)), *masks))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            return diffusion_loss(hidden, decoder.head_weight, layout, batch, mask)

    evaluate = every and (every[0], lambda step: every[1](decoder, step))
    state_file = out / "resume.pt"
    finished = train(
        decoder, loss_of, config, state_file, title="conversion", stop_after=stop_after, every=evaluate
    )
    if finished:
        save_checkpoint(out, decoder, converted_config(hf_config, decoder, config, mask), base)
        state_file.unlink()
    return finished
