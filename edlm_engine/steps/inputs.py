"""The one idea: a forward pass is a list of query blocks, and the tensors it becomes."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
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


QUERY_BLOCK_WORDS = 6  # the fields of QueryBlock, and the block's first row


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

    @classmethod
    def parts_of(cls, buffer: torch.Tensor, rows: int, blocks: int, heads: int) -> "ForwardInputs":
        """The parts of an int32 buffer, one behind the other in the order above, as views of it; the rest of
        the buffer is first_row."""
        sizes = [rows, rows, rows, QUERY_BLOCK_WORDS * blocks, heads, heads, heads]
        parts = buffer.split([*sizes, len(buffer) - sum(sizes)])
        return cls(*parts[:3], parts[3].view(-1, QUERY_BLOCK_WORDS), *parts[4:])


class StepBuffer:
    """Inputs of denoising steps that ops.advance lays out, for the first `batch` cache slots.

    buffer: int32, what the op takes; inputs: its parts. They have room for the rows of a whole block of every
    slot, and as many clean ones. noisy: whether blocks have rows of their own; a block of one position that
    the row before it predicts has none (autoregressive models).
    """

    def __init__(self, slots: int, block_length: int, batch: int, shift: bool, device="cpu"):
        self.noisy = not (shift and block_length == 1)
        self.heads = batch * block_length
        self.rows = (2 if self.noisy else 1) * self.heads
        size = 3 * self.rows + 2 * QUERY_BLOCK_WORDS * batch + 3 * self.heads + slots
        self.buffer = torch.zeros(size, dtype=torch.int32, device=device)
        self.inputs = ForwardInputs.parts_of(self.buffer, self.rows, 2 * batch, self.heads)

    def leading(self, rows: int, blocks: int, heads: int) -> ForwardInputs:
        """The first rows, query blocks and head rows of what was laid out, as views."""
        whole = self.inputs
        return ForwardInputs(
            whole.token_ids[:rows], whole.slots[:rows], whole.positions[:rows], whole.query_blocks[:blocks],
            whole.head_rows[:heads], whole.head_slots[:heads], whole.head_positions[:heads], whole.first_row,
        )  # fmt: skip


def append_blocks(inputs: ForwardInputs, blocks: list[tuple[QueryBlock, list[int]]]) -> ForwardInputs:
    """`inputs` and, behind them, the rows of query blocks of known tokens, which predict nothing."""
    row, columns, table = len(inputs.token_ids), [[], [], []], []
    for block, tokens in blocks:
        positions = np.arange(block.start, block.start + block.length, dtype=np.int32)
        slots = np.full(block.length, block.slot, np.int32)
        for column, values in zip(columns, (np.asarray(tokens, np.int32), slots, positions), strict=True):
            column.append(values)
        table.append((*block, row))
        row += block.length
    added = [torch.from_numpy(np.concatenate(column)) for column in columns]
    rows = [torch.cat((getattr(inputs, f.name), new)) for f, new in zip(fields(inputs), added, strict=False)]
    table = torch.cat((inputs.query_blocks, torch.tensor(table, dtype=torch.int32, device="cpu")))
    return ForwardInputs(*rows, table, *(getattr(inputs, f.name) for f in fields(inputs)[4:]))


def to_device(inputs: ForwardInputs, device: torch.device) -> ForwardInputs:
    """`inputs` on a GPU, in one copy."""
    if device.type == "cpu":
        return inputs
    flat = torch.cat([getattr(inputs, f.name).flatten() for f in fields(inputs)])
    if device.type == "cuda":
        flat = flat.pin_memory()
    sizes = len(inputs.token_ids), len(inputs.query_blocks), len(inputs.head_rows)
    return ForwardInputs.parts_of(flat.to(device, non_blocking=True), *sizes)
