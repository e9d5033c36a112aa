"""Weights of one byte: int8 or float8, one scale per output, symmetric; activations are quantised by row, see
ops.quantize_rows.

Sources: vector-wise quantisation, Dettmers et al., arXiv:2208.07339, sect. 3.1, without its outliers; float8
(e4m3), Micikevicius et al., arXiv:2209.05433.
"""

from typing import NamedTuple

import torch

from ..config import ModelConfig

MOST_COLUMNS = 66_000  # 255 * 127 * 66,000 < 2^31: sums of products are exact in int32
_ROWS = 512  # of a matrix at a time: bounds the fp32 copy
DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


class QuantizedWeight(NamedTuple):
    """A matrix [outputs, inputs] ~ values * scale[:, None]: int8 within ±127 or float8_e4m3fn within ±448,
    and float32 [outputs]."""

    values: torch.Tensor
    scale: torch.Tensor


def check_columns(config: ModelConfig):
    """Raise ValueError for a model with a linear layer of more inputs than the kernels can sum up."""
    inputs = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
              "num_attention_heads * head_dim": config.q_size}  # fmt: skip
    for name, size in inputs.items():
        if size > MOST_COLUMNS:
            most = f"quantised products sum up at most {MOST_COLUMNS} inputs"
            raise ValueError(f"{name} is {size}; {most}, leave quantization out")


def quantize_weight(weight: torch.Tensor, dtype: torch.dtype = torch.int8) -> QuantizedWeight:
    """The nearest matrix of that type: scale = max |row| / largest number. An output whose weights are all 0
    gets the scale 0; one that is not finite, NaN."""
    values = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    largest = LARGEST[dtype]
    for rows, q, s in zip(weight.split(_ROWS), values.split(_ROWS), scale.split(_ROWS), strict=True):
        wide = rows.float()
        s.copy_(wide.abs().amax(1) / largest)
        scaled = wide / s.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        scaled = scaled.round_() if dtype == torch.int8 else scaled.clamp_(-largest, largest)
        q.copy_(scaled.nan_to_num_(0))
        s.masked_fill_(~wide.isfinite().all(1), torch.nan)
    return QuantizedWeight(values, scale)


def concatenate(parts: list[QuantizedWeight]) -> QuantizedWeight:
    """Matrices of the same inputs and type, one below the other."""
    values = torch.cat([p.values.view(torch.uint8) for p in parts])  # torch joins no float8 everywhere
    return QuantizedWeight(values.view(parts[0].values.dtype), torch.cat([p.scale for p in parts]))
