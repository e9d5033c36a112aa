"""The active blocks of all sequences: a record per cache slot, which the kernels read and change in place."""

from collections.abc import Collection
from types import SimpleNamespace

import numpy as np
import torch

from .. import ops
from .policies import Policy

OPEN = -1  # in a canvas: a position to fill
SLOT_WORDS = sum(count for _, _, count in ops.SLOT_FIELDS)
STOP_IDS = next(count for name, _, count in ops.SLOT_FIELDS if name == "stop_ids")
RULE_PARAMETERS = next(count for name, _, count in ops.SLOT_FIELDS if name == "rule_parameters")


def record_words(block_length: int) -> int:
    """Words of four bytes of a record whose blocks are at most that long: a multiple of 16 bytes."""
    return -(-(SLOT_WORDS + len(ops.POSITION_FIELDS) * block_length) // 4) * 4


def fields_of(records: torch.Tensor, block_length: int) -> dict[str, torch.Tensor]:
    """The fields of records [slots, words] by name, as views: [slots], [slots, count] for a slot's fields of
    more than one value, [slots, block_length] for those of positions."""
    as_type = {"std::int32_t": records, "float": records.view(torch.float32)}
    fields, at = {}, 0
    for name, kind, count in ops.SLOT_FIELDS:
        fields[name] = as_type[kind][:, at] if count == 1 else as_type[kind][:, at : at + count]
        at += count
    for name, kind in ops.POSITION_FIELDS:
        fields[name] = as_type[kind][:, at : at + block_length]
        at += block_length
    return fields


class BlockState:
    """The fields of csrc/block_state.h, where their meanings stand, under their names.

    Every field is an attribute, and `host` has the same names as numpy arrays, for code that looks at single
    elements. records: int32 [slots, words], all of them, what the ops take. On a GPU, upload() and download()
    move them whole; on a CPU tensors and arrays are the same memory, unless `apart`. host_records: the
    host's side of them.
    """

    def __init__(
        self, slots: int, block_length: int, mask_token_id: int | None, device="cpu", apart: bool = False
    ):
        self.mask_token_id = mask_token_id
        self.records = torch.zeros(slots, record_words(block_length), dtype=torch.int32, device=device)
        on_gpu = self.records.device.type != "cpu"
        self.host_records = self.records
        if on_gpu or apart:
            pinned = on_gpu and self.records.device.type == "cuda"
            self.host_records = torch.zeros(
                self.records.shape, dtype=torch.int32, device="cpu", pin_memory=pinned
            )
        for name, field in fields_of(self.records, block_length).items():
            setattr(self, name, field)
        fields = fields_of(self.host_records, block_length)
        self.host = SimpleNamespace(**{name: field.numpy() for name, field in fields.items()})

    def upload(self):
        """Make the device see what was written through `host`."""
        if self.host_records is not self.records:
            self.records.copy_(self.host_records, non_blocking=True)

    def download(self):
        """Make `host` show what the kernels wrote; waits for them."""
        if self.host_records is not self.records:
            self.host_records.copy_(self.records)

    def load_snapshot(self, snapshot: torch.Tensor):
        """Make `host` show the state of a step that is past. snapshot: a copy of `records` from then, in any
        shape."""
        self.host_records.copy_(snapshot.view(self.host_records.shape))

    def begin_request(
        self,
        slot: int,
        policy: Policy,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ):
        """What a request chooses."""
        host, parameters = self.host, policy.parameters()
        host.rule[slot] = ops.RULES["selected" if policy.rule is None else policy.rule]
        host.rule_parameters[slot] = 0
        host.rule_parameters[slot, : len(parameters)] = parameters
        host.keep_wanted[slot] = policy.wants == "all"
        host.temperature[slot], host.top_k[slot], host.top_p[slot] = temperature, top_k, top_p
        host.seed[slot] = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32).view(np.int32)
        host.mask_id[slot] = 0 if self.mask_token_id is None else self.mask_token_id

    def begin_sequence(
        self, slot: int, start: int, pending, end: int, full_length: int, stop_ids: Collection[int]
    ):
        """Where the blocks of a slot lie, which is not active yet: the first one at position `start`, behind
        the tokens `pending` that a step is still to write, the last one ends before `end`, all but it have
        full_length positions. Of stop_ids the device knows the first STOP_IDS."""
        host = self.host
        host.active[slot], host.start[slot], host.end[slot] = 0, start, end
        host.full_length[slot] = full_length
        host.pending[slot] = len(pending)
        host.clean[slot, : len(pending)] = pending
        host.stop_ids[slot] = -1
        known = np.fromiter(stop_ids, np.int32)[:STOP_IDS]
        host.stop_ids[slot, : len(known)] = known

    def begin_block(self, slot: int, canvas):
        """A block, begun by the host. canvas: for each position OPEN, or the token that is given there."""
        host, length = self.host, len(canvas)
        canvas = np.asarray(canvas, np.int32)
        is_open = canvas == OPEN
        host.tokens[slot] = host.mask_id[slot]
        host.tokens[slot, :length] = np.where(is_open, host.mask_id[slot], canvas)
        host.open[slot], host.given[slot] = 0, 0
        host.open[slot, :length] = is_open
        host.given[slot, :length] = ~is_open
        host.wanted[slot] = host.open[slot]
        host.block_length[slot] = length
        host.step[slot] = host.status[slot] = 0
