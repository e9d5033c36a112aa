"""From sequences to the rows of a forward: which query blocks, which rows need statistics."""

import numpy as np
import torch

from .block_state import BlockState
from .inputs import ForwardInputs, QueryBlock


class ForwardBuilder:
    """Collects query blocks of any sequences and turns them into ForwardInputs."""

    def __init__(self, num_slots: int):
        self.rows = 0
        self.prompt_rows = 0
        self._tokens: list[np.ndarray] = []
        self._slots: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._blocks: list[np.ndarray] = []
        self._head_rows: list[np.ndarray] = []
        self._head_slots: list[np.ndarray] = []
        self._head_positions: list[np.ndarray] = []
        self._heads = 0
        self._first_row = np.full(num_slots, -1, np.int32)

    def add(self, block: QueryBlock, tokens) -> int:
        """Add a query block; returns its first row."""
        row = self.rows
        self._blocks.append(np.array((*block, row), np.int32))
        self._tokens.append(np.asarray(tokens, np.int32))
        self._slots.append(np.full(block.length, block.slot, np.int32))
        self._positions.append(np.arange(block.start, block.start + block.length, dtype=np.int32))
        self.rows += block.length
        return row

    def want(self, slot: int, rows: np.ndarray, positions: np.ndarray):
        """Ask for the statistics of `rows`, which predict the tokens at `positions`, ascending, of `slot`."""
        self._first_row[slot] = self._heads
        self._heads += len(rows)
        self._head_rows.append(rows.astype(np.int32))
        self._head_slots.append(np.full(len(rows), slot, np.int32))
        self._head_positions.append(positions.astype(np.int32))

    def build(self, device: torch.device | str = "cpu") -> ForwardInputs:
        """The collected rows as tensors; on a GPU they arrive in one copy."""
        groups = [
            self._tokens, self._slots, self._positions, self._blocks,
            self._head_rows, self._head_slots, self._head_positions, [self._first_row],
        ]  # fmt: skip
        sizes = [sum(array.size for array in group) for group in groups]
        flat = torch.from_numpy(np.concatenate([array for group in groups for array in group]))
        if torch.device(device).type != "cpu":
            flat = flat.pin_memory().to(device, non_blocking=True)
        parts = flat.split(sizes)
        return ForwardInputs(*parts[:3], parts[3].view(-1, 6), *parts[4:])


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
