"""The settings of training runs and of conversions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from edlm_engine.options import choose_dtype

ATTENTIONS = ("block_diff", "no_clean_context", "bidirectional")


@dataclass(frozen=True)
class TrainConfig:
    """What every training run here needs.

    steps: optimizer steps. rows, length: a batch is `rows` packed rows of `length` tokens. learning_rate:
    AdamW's peak, cosine-decayed to `final_learning_rate` after a linear warm-up over `warmup_steps`.
    cosine_steps: where the cosine reaches its end, None for `steps`; over the last `cooldown_steps` the rate
    goes linearly to the final one, so a run may end before its cosine. optimizer: "adamw" (the paper's), or
    "muon": Muon at `muon_learning_rate` (same schedule) for the matrices of the layers, AdamW for the rest.
    gradient_clip: largest norm of the whole gradient. prompt_weight: loss weight of prompt tokens, where data
    tells them apart. bf16: bf16 autocast over fp32 weights; None: where the device multiplies bf16 natively.
    compile: torch.compile the forward. device: "auto" is CUDA if there is one. seed: of the data's order and
    all noise. checkpoint_every: steps between two saves of the whole state.
    """

    steps: int = 1000
    rows: int = 16
    length: int = 256
    learning_rate: float = 1e-5
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    cosine_steps: int | None = None
    cooldown_steps: int = 0
    optimizer: str = "adamw"
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    prompt_weight: float = 1.0
    bf16: bool | None = None
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self):
        for name in ("steps", "rows", "length", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "muon_learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate} is not in 0 … {self.learning_rate}"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps must be in 0 … steps ({self.steps}), got {self.warmup_steps}")
        if not 0 <= self.cooldown_steps <= self.steps - self.warmup_steps:
            raise ValueError(
                f"cooldown_steps must be in 0 … steps - warmup_steps ({self.steps - self.warmup_steps}), "
                f"got {self.cooldown_steps}"
            )
        if self.cosine_steps is not None and self.cosine_steps < 1:
            raise ValueError(f"cosine_steps must be at least 1 or None (steps), got {self.cosine_steps}")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer must be 'adamw' or 'muon', got {self.optimizer!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if not 0 <= self.prompt_weight <= 1:
            raise ValueError(f"prompt_weight must be in 0 … 1, got {self.prompt_weight}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in 0 … 2**31 - 1, got {self.seed}")

    def torch_device(self) -> torch.device:
        """Raises ValueError for a device that there is none of."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device must be auto, cpu or cuda, got {self.device!r}") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}: torch finds no CUDA device here; use 'cpu'")
        return device

    def with_precision(self) -> TrainConfig:
        """This with `bf16` decided. A CPU that has to emulate bf16 takes many times as long for it as for
        fp32."""
        if self.bf16 is not None:
            return self
        return replace(self, bf16=choose_dtype("auto", self.torch_device().type) == "bfloat16")


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
