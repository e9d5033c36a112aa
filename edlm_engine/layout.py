"""From sequences to the rows of a forward: which query blocks, which rows need statistics."""

import numpy as np
import torch

from .decoding.block_state import BlockState
from .forward import ForwardInputs, QueryBlock


class ForwardBuilder:
    """Collects query blocks of any sequences and turns them into ForwardInputs."""

    def __init__(self, num_slots: int):
        self.rows = 0
        self.prompt_rows = 0
        self._tokens: list[np.ndarray] = []
        self._slots: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._blocks: list[tuple] = []
        self._head_rows: list[np.ndarray] = []
        self._head_slots: list[np.ndarray] = []
        self._head_positions: list[np.ndarray] = []
        self._heads = 0
        self._first_row = np.full(num_slots, -1, np.int32)

    def add(self, block: QueryBlock, tokens) -> int:
        """Add a query block; returns its first row."""
        row = self.rows
        self._blocks.append((*block, row))
        self._tokens.append(np.asarray(tokens, np.int32))
        self._slots.append(np.full(block.length, block.slot, np.int32))
        self._positions.append(np.arange(block.start, block.start + block.length, dtype=np.int32))
        self.rows += block.length
        return row

    def want(self, slot: int, rows: np.ndarray, positions: np.ndarray):
        """Ask for the statistics of `rows`, which predict the tokens at `positions`, ascending, of `slot`."""
        self._first_row[slot] = self._heads
        self._heads += len(rows)
        self._head_rows.append(rows)
        self._head_slots.append(np.full(len(rows), slot))
        self._head_positions.append(positions)

    def build(self) -> ForwardInputs:
        return ForwardInputs(
            token_ids=_int32(np.concatenate(self._tokens)),
            slots=_int32(np.concatenate(self._slots)),
            positions=_int32(np.concatenate(self._positions)),
            query_blocks=_int32(np.array(self._blocks)),
            head_rows=_int32(np.concatenate([*self._head_rows, []])),
            head_slots=_int32(np.concatenate([*self._head_slots, []])),
            head_positions=_int32(np.concatenate([*self._head_positions, []])),
            first_row=torch.from_numpy(self._first_row),
        )


def _int32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int32))


def prompt_blocks(
    slot: int, cached: int, length: int, prefill: str, block_length: int, room: int
) -> list[QueryBlock]:
    """Query blocks of prompt positions [cached, length) that fit into `room` rows, maybe none.

    A bidirectional prompt cannot be divided: every row sees all the others.
    """
    if prefill == "bidirectional":
        return [QueryBlock(slot, 0, length, length)] if length <= room else []
    if prefill == "causal":
        count = min(room, length - cached)
        return [QueryBlock(slot, cached, count, cached + count, True)] if count > 0 else []
    ends = [min(start + block_length, length) for start in range(cached, length, block_length)]
    starts = [cached, *ends[:-1]]
    return [QueryBlock(slot, a, b - a, b) for a, b in zip(starts, ends, strict=True) if b - cached <= room]


def add_active_block(
    builder: ForwardBuilder,
    state: BlockState,
    slot: int,
    start: int,
    last_token: int,
    *,
    shift: bool,
    fresh: bool,
):
    """The active block at `start`, with the rows whose statistics its masked positions need.

    shift: the token at position i is predicted by row i - 1. The block's first token then needs the row of
    last_token, the clean token at start - 1: it is the builder's last row if `fresh`, else it runs again.
    """
    length = int(state.host.block_length[slot])
    tokens = state.host.tokens[slot, :length]
    masked = np.flatnonzero(state.host.masked[slot, :length])
    if not shift:
        first = builder.add(QueryBlock(slot, start, length, start + length), tokens)
        return builder.want(slot, first + masked, start + masked)
    before = builder.rows - 1 if fresh else builder.add(QueryBlock(slot, start - 1, 1, start), [last_token])
    rows = np.array([before])
    if state.mask_token_id is not None:  # an autoregressive model has no row for the token to come
        first = builder.add(QueryBlock(slot, start, length, start + length), tokens)
        rows = np.concatenate([rows, np.arange(first, first + length - 1)])
    return builder.want(slot, rows[masked], start + masked)
