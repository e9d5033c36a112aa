"""The inputs of one forward pass: query blocks and their rows."""

from dataclasses import dataclass
from typing import NamedTuple

import torch


class QueryBlock(NamedTuple):
    """`length` rows of the sequence in cache slot `slot`, at positions start … start + length - 1.

    Every row sees the keys [0, kv_len) of its own sequence. causal: the last row sees kv_len keys, each
    earlier row one fewer.
    """

    slot: int
    start: int
    length: int
    kv_len: int
    causal: bool = False


@dataclass(slots=True)
class ForwardInputs:
    """Tensors of one forward over `rows` rows of any mix of sequences.

    token_ids, slots, positions: int32 [rows].
    query_blocks: int32 [blocks, 6]: slot, start, length, kv_len, causal, first row.
    head_rows: int32 [m], the rows whose statistics are wanted; head_slots, head_positions: int32 [m], the
        slot and the absolute position whose token each of them predicts.
    first_row: int32 [slots], where a slot's rows begin in head_rows; -1: not denoising in this forward.
    """

    token_ids: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    query_blocks: torch.Tensor
    head_rows: torch.Tensor
    head_slots: torch.Tensor
    head_positions: torch.Tensor
    first_row: torch.Tensor
