"""The settings of a conversion."""

from __future__ import annotations

from dataclasses import dataclass

from edlm_engine.convert.train import TrainConfig

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
