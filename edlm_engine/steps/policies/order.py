"""The order in which rules come to their candidates."""

from collections.abc import Callable

import torch
from torch import Tensor


def take_prefix(open: Tensor, key: Tensor, takes: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """bool [blocks, positions]: of the open positions, in falling order of `key` (ties: the lowest position
    first), the first one and as many behind it as `takes` says one after the other.

    takes(key, before, rank): of the ordered positions float64 [blocks, positions], the sum of the keys before
    each, and its rank from 0; says whether the rule takes it, should it come to it.
    """
    key = torch.where(open, key.double(), -torch.inf)
    ordered, order = key.sort(dim=1, descending=True, stable=True)
    finite = ordered.isfinite()
    before = torch.where(finite, ordered, 0).cumsum(1) - torch.where(finite, ordered, 0)
    rank = torch.arange(key.shape[1], device=key.device).expand_as(key)
    taken = ((takes(ordered, before, rank) | (rank == 0)) & finite).long().cumprod(1)
    return torch.zeros_like(open, dtype=torch.bool).scatter(1, order, taken.bool()) & open.bool()
