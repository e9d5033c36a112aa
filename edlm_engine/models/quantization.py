"""int8 weights: one scale per output, symmetric; activations are quantised by row, see ops.quantize_rows.

Source: vector-wise quantisation, Dettmers et al., arXiv:2208.07339, sect. 3.1, without its outliers.
"""

from typing import NamedTuple

import torch

_ROWS = 512  # of a matrix at a time: bounds the fp32 copy


class Int8Weight(NamedTuple):
    """A matrix [outputs, inputs] ~ values * scale[:, None]: int8 within ±127, and float32 [outputs]."""

    values: torch.Tensor
    scale: torch.Tensor


def quantize_weight(weight: torch.Tensor) -> Int8Weight:
    """The nearest int8 matrix: scale = max |row| / 127. An output whose weights are all 0 gets the scale 0;
    one that is not finite, NaN."""
    values, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    for rows, q, s in zip(weight.split(_ROWS), values.split(_ROWS), scale.split(_ROWS), strict=True):
        wide = rows.float()
        s.copy_(wide.abs().amax(1) / 127)
        q.copy_((wide / s.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_().nan_to_num_(0))
        s[~wide.isfinite().all(1)] = torch.nan
    return Int8Weight(values, scale)


def concatenate(parts: list[Int8Weight]) -> Int8Weight:
    """Matrices of the same inputs, one below the other."""
    return Int8Weight(torch.cat([p.values for p in parts]), torch.cat([p.scale for p in parts]))
