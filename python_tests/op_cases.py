"""Cases and inputs of every op, shared by its tests and its benchmark, and the comparison with tolerances."""

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops, policies
from edlm_engine.steps.block_state import BlockState
from edlm_engine.steps.inputs import StepBuffer

ABSURD = 2**31 - 1  # in page-table entries that nobody may read


def assert_close(actual: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    """NaN in either fails, except where both have it."""
    actual, expected = actual.double(), expected.double()
    good = (actual - expected).abs() <= atol + rtol * expected.abs()
    good |= (actual == expected) | (actual.isnan() & expected.isnan())
    worst = (actual - expected).abs()[~good]
    assert bool(good.all()), f"{len(worst)} of {good.numel()} differ, by up to {worst.max():g}"


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def ints(values) -> Tensor:
    return torch.as_tensor(np.asarray(values, np.int32))


# rows, columns: odd sizes leave partial vectors; 896 and 1024 are Qwen2.5-0.5B's and Qwen3-0.6B's.
ROW_SHAPES = [(0, 64), (1, 16), (3, 41), (7, 896), (33, 1024), (130, 192)]


@dataclass(frozen=True)
class Cache:
    """A paged cache for sequences that use `lengths` positions of their slots; pages lie in random order."""

    kv_heads: int
    head_dim: int
    page_size: int
    lengths: tuple[int, ...]
    spare_entries: int = 2

    def tables(self, seed: int = 0) -> tuple[int, Tensor]:
        """Number of pages, and the page table, absurd where unused."""
        used = [-(-length // self.page_size) for length in self.lengths]
        pages = sum(used) + 3
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed)).int()
        table = torch.full((len(used), max(used) + self.spare_entries), ABSURD, dtype=torch.int32)
        for slot, (n, end) in enumerate(zip(used, torch.tensor(used).cumsum(0).tolist(), strict=True)):
            table[slot, :n] = order[end - n : end]
        return pages, table

    def empty(self, pages: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        shape = (pages, self.kv_heads, self.page_size, self.head_dim)
        return torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)

    def filled(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """k_cache, v_cache, page_table; NaN lies wherever no sequence has written."""
        pages, table = self.tables(seed)
        caches = self.empty(pages, dtype)
        for n, cache in enumerate(caches):
            for slot, length in enumerate(self.lengths):
                x = tensor((length, self.kv_heads, self.head_dim), dtype, seed + 10 * slot + n)
                position = torch.arange(length)
                pages_of = table[slot, position // self.page_size].long()
                cache[pages_of, :, position % self.page_size] = x
        return *caches, table


@dataclass(frozen=True)
class QkvCase:
    heads: int
    cache: Cache
    starts: tuple[int, ...]  # per slot: the first position of its rows, which reach to the slot's length
    bias: bool = False
    norm: bool = False

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor | None]:
        """The arguments but q and eps; two rows of padding are among them."""
        cache, dim = self.cache, self.cache.head_dim
        pages, table = cache.tables(seed)
        k_cache, v_cache = cache.empty(pages, dtype)
        slots, positions = [-1], [0]
        for slot, (start, end) in enumerate(zip(self.starts, cache.lengths, strict=True)):
            slots += [slot] * (end - start)
            positions += range(start, end)
        slots, positions = [*slots, -1], [*positions, -5]
        width = (self.heads + 2 * cache.kv_heads) * dim
        angles = torch.outer(torch.arange(max(cache.lengths)), 10.0 ** -torch.linspace(0, 4, dim // 2))
        return {
            "qkv": tensor((len(slots), width), dtype, seed),
            "bias": tensor((width,), dtype, seed + 1) if self.bias else None,
            "q_norm": tensor((dim,), dtype, seed + 2).abs() if self.norm else None,
            "k_norm": tensor((dim,), dtype, seed + 3).abs() if self.norm else None,
            "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=1),
            "slots": ints(slots),
            "positions": ints(positions),
            "page_table": table,
            "k_cache": k_cache,
            "v_cache": v_cache,
        }


QKV_CASES = {
    "qwen2": QkvCase(14, Cache(2, 64, 16, (40, 7, 33)), (8, 6, 0), bias=True),
    "qwen3": QkvCase(16, Cache(8, 128, 32, (64, 64)), (32, 63), norm=True),
    "plain": QkvCase(3, Cache(3, 16, 16, (17,)), (1,)),
    "both": QkvCase(6, Cache(2, 80, 64, (9, 100)), (0, 95), bias=True, norm=True),
}


@dataclass(frozen=True)
class AttentionCase:
    heads: int
    cache: Cache
    blocks: tuple[tuple[int, int, int, int], ...]  # slot, length, kv_len, causal

    @property
    def rows(self) -> int:
        return sum(length for _, length, _, _ in self.blocks) + 1

    @property
    def scale(self) -> float:
        return self.cache.head_dim**-0.5

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
        """The arguments but scale and out. Row 0 belongs to no block, and one block is padding."""
        k_cache, v_cache, page_table = self.cache.filled(dtype, seed)
        blocks, row = [[-1, 0, ABSURD, ABSURD, 0, -ABSURD]], 1
        for slot, length, kv_len, causal in self.blocks:
            blocks.append([slot, kv_len - length, length, kv_len, causal, row])
            row += length
        return {
            "q": tensor((self.rows, self.heads, self.cache.head_dim), dtype, seed + 7),
            "k_cache": k_cache,
            "v_cache": v_cache,
            "query_blocks": ints(blocks),
            "page_table": page_table,
        }


ATTENTION_CASES = {
    "one_row": AttentionCase(4, Cache(2, 64, 16, (1,)), ((0, 1, 1, 0),)),
    "decode": AttentionCase(16, Cache(8, 128, 32, (77, 200)), ((0, 1, 77, 1), (1, 1, 200, 1))),
    "block": AttentionCase(16, Cache(8, 128, 64, (300,)), ((0, 32, 300, 0),)),
    "fused": AttentionCase(
        14, Cache(2, 64, 16, (130, 64)), ((0, 32, 98, 0), (0, 32, 130, 0), (1, 16, 64, 0))
    ),
    "split": AttentionCase(2, Cache(1, 64, 64, (700,)), ((0, 5, 690, 0),)),  # few rows, many keys
    "long": AttentionCase(  # the CPU takes more than 2048 keys apart, but not those of causal rows
        4,
        Cache(2, 16, 64, (5000, 2049, 4096)),
        ((0, 1, 4100, 0), (0, 40, 4997, 0), (1, 1, 2049, 1), (2, 3, 4096, 0), (0, 2, 4999, 1)),
    ),
    "causal": AttentionCase(4, Cache(1, 48, 128, (150,)), ((0, 150, 150, 1),)),
    "causal_suffix": AttentionCase(6, Cache(3, 16, 16, (90,)), ((0, 33, 90, 1),)),
    "wide": AttentionCase(2, Cache(2, 256, 256, (70,)), ((0, 70, 70, 0),)),
}


@dataclass(frozen=True)
class StatsCase:
    rows: int
    hidden_size: int
    vocab: int
    forbidden_id: int = -1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def state(self, seed: int = 0) -> BlockState:
        """What the slots of the rows ask for."""
        state = BlockState(self.rows, 1, 0)
        for slot in range(self.rows):
            sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
            state.begin_request(slot, policies.Threshold(), **sampling, seed=seed + 2**60 * slot)
            state.host.step[slot] = slot + 1
        return state

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor | int]:
        """The arguments but ids and stats; row i is slot i at position 3 i + 5."""
        n = self.rows
        scale = 4 / self.hidden_size**0.5  # logits of a standard deviation of about 4
        return {
            "hidden": tensor((n, self.hidden_size), dtype, seed),
            "weight": tensor((self.vocab, self.hidden_size), dtype, seed + 1, scale),
            "slots": torch.arange(n).int(),
            "positions": torch.arange(n).int() * 3 + 5,
            "state": self.state(seed).records,
            "forbidden_id": self.forbidden_id,
        }


STATS_CASES = {
    "one": StatsCase(1, 64, 1000),
    "odd": StatsCase(3, 41, 777, forbidden_id=776),
    "rows": StatsCase(21, 192, 4100, forbidden_id=0),
    "deep": StatsCase(5, 2064, 515, forbidden_id=100),
    "two_ids": StatsCase(2, 16, 2),
    "one_id": StatsCase(2, 16, 1),
    "sampled": StatsCase(19, 64, 3001, forbidden_id=17, temperature=0.8),
    "hot": StatsCase(4, 64, 3001, temperature=50.0),
    "top_k": StatsCase(9, 64, 3001, temperature=1.5, top_k=20),
    "top_k_all": StatsCase(3, 64, 301, temperature=1.5, top_k=1000),
    "top_p": StatsCase(9, 64, 3001, forbidden_id=3000, temperature=1.5, top_p=0.9),
    "top_p_tiny": StatsCase(3, 64, 3001, temperature=1.0, top_p=1e-6),
    "top_k_p": StatsCase(9, 64, 3001, temperature=2.0, top_k=200, top_p=0.7),
}


def clone(state: BlockState) -> BlockState:
    """Another state with the same contents."""
    other = BlockState(len(state.records), state.tokens.shape[1], state.mask_token_id)
    other.records.copy_(state.records)
    return other


def random_policy(rng: np.random.Generator) -> policies.Policy:
    """Any policy, with numbers that decide something."""
    kind = rng.choice(list(policies.BY_NAME))
    name = next(iter(policies.BY_NAME[kind].__dataclass_fields__))
    if kind == "schedule":
        return policies.Schedule(int(rng.integers(1, 8)) if rng.random() < 0.9 else None)
    if kind == "threshold":
        steps = int(rng.integers(1, 10)) if rng.random() < 0.5 else None
        return policies.Threshold(int(rng.integers(1, 11)) / 10, steps)
    return policies.BY_NAME[kind](**{name: int(rng.integers(1, 11)) / 10})


def unmask_state(slots: int, max_block: int, seed: int) -> tuple[BlockState, Tensor, Tensor, Tensor]:
    """The state for unmask, ids, stats and first_row: random blocks, any number of positions open, more of
    them wanted or fewer, given ones among the others, any rule, tied keys."""
    rng = np.random.default_rng(seed)
    state = BlockState(slots, max_block, 7)
    host, shape = state.host, (slots, max_block)
    for slot in range(slots):
        state.begin_request(slot, random_policy(rng))
    if slots:
        host.rule[rng.random(slots) < 0.15] = ops.RULES["selected"]
    host.block_length[:] = rng.integers(1, max_block + 1, slots)
    inside = np.arange(max_block) < host.block_length[:, None]
    host.open[:] = (rng.random(shape) < rng.random((slots, 1))) & inside
    host.wanted[:] = host.open
    host.keep_wanted[:] = rng.random(slots) < 0.3
    more = (rng.random(slots) < 0.3)[:, None] & (rng.random(shape) < 0.8) & inside
    host.wanted[:] = np.where(more.any(1, keepdims=True), more, host.wanted)
    host.given[:] = (rng.random(shape) < 0.2) & inside & (host.open == 0)
    host.selected[:] = rng.random(shape) < 0.4
    for field, high in ((host.tokens, 1000), (host.commit_step, 5), (host.step, 10), (host.status, 2)):
        field[:] = rng.integers(0, high, field.shape)
    host.confidence[:] = rng.random(shape)
    wanted = host.wanted.sum(1)
    first_row = np.where(rng.random(slots) < 0.2, -1, wanted.cumsum() - wanted)
    rows = int(wanted.sum())
    stats = rng.random((rows, len(ops.STAT_COLUMNS))).astype(np.float32)
    ties = rng.random(rows) < 0.7
    stats[ties] = (stats[ties] * 12).round() / 12
    ids = rng.integers(0, 1000, (rows, len(ops.ID_COLUMNS)))
    return state, ints(ids), torch.from_numpy(stats), ints(first_row)


@dataclass
class Advance:
    """Arguments of advance."""

    state: BlockState
    buffer: StepBuffer
    control: Tensor
    link: Tensor
    flags: int

    def clone(self, device: str = "cpu") -> "Advance":
        """Another set with the same contents; on a GPU, `link` is memory that both sides see."""
        other, batch = copy(self), self.buffer.heads // self.state.tokens.shape[1]
        slots, width = self.state.tokens.shape
        other.state = BlockState(slots, width, self.state.mask_token_id, device)
        other.state.records.copy_(self.state.records)
        other.buffer = StepBuffer(slots, width, batch, bool(self.flags & ops.SHIFT), device)
        other.buffer.buffer.copy_(self.buffer.buffer)
        other.control = self.control.to(device, copy=True)
        other.link = self.link.clone() if device == "cpu" else self.link.clone().pin_memory()
        return other

    def arguments(self) -> tuple:
        """Of the op."""
        return self.state.records, self.buffer.buffer, self.control, self.link, self.flags

    def tensors(self) -> dict[str, Tensor]:
        """What the op may change."""
        return {"state": self.state.records, "inputs": self.buffer.buffer, "control": self.control[:4],
                "link": self.link}  # fmt: skip


def advance_state(
    slots: int, batch: int, max_block: int, seed: int, *, shift=False, lay_out_only=False
) -> Advance:
    """Arguments of advance: blocks that are under way, finished, failed, at their end or at a stop id, some
    with given tokens, some inactive, some that the host wants ended; what the op only writes is poisoned."""
    rng = np.random.default_rng(seed)
    state = BlockState(slots, max_block, 3)
    host, shape = state.host, (slots, max_block)
    host.mask_id[:] = 3
    for field in (host.tokens, host.clean):
        field[:] = rng.integers(0, 60, shape)
    host.full_length[:] = rng.integers(1, max_block + 1, slots)
    host.block_length[:] = np.minimum(host.full_length, rng.integers(1, max_block + 1, slots))
    inside = np.arange(max_block) < host.block_length[:, None]
    host.open[:] = (rng.random(shape) < 0.5) & inside & (rng.random(slots) < 0.6)[:, None]
    host.wanted[:] = np.where((rng.random(slots) < 0.3)[:, None], inside, host.open)
    host.given[:] = (rng.random(shape) < 0.2) & inside & (host.open == 0)
    finished = host.open.sum(1) == 0
    host.step[:] = rng.integers(0, 9, slots)
    host.status[:] = np.where(rng.random(slots) < 0.1, -1, finished)
    host.active[:] = rng.random(slots) < 0.8
    host.start[:] = rng.integers(max_block, 500, slots)
    host.pending[:] = rng.integers(int(shift), max_block + 1, slots)
    host.end[:] = (
        host.start + host.block_length + rng.integers(0, 3, slots) * rng.integers(1, max_block + 1, slots)
    )
    stop = (slots, host.stop_ids.shape[1])
    host.stop_ids[:] = np.where(rng.random(stop) < 0.1, rng.integers(0, 60, stop), -1)
    buffer = StepBuffer(slots, max_block, batch, shift)
    buffer.buffer.fill_(ABSURD)
    written = seed % 1000
    link = torch.full((4, state.records.numel()), 99, dtype=torch.int32)
    link[0, : 2 + slots] = ints([written, seed % 7 == 0, *(rng.random(slots) < 0.1)])
    flags = ops.LAY_OUT | (ops.SHIFT if shift else 0) | (0 if lay_out_only else ops.TAKE | ops.SNAPSHOT)
    return Advance(state, buffer, ints([7, 7, 77, written, 0, 0, 0, 0]), link, flags)


# slots, batch, longest block and switches of advance_state()
ADVANCE_CASES = {
    "one": (1, 1, 16, {}),
    "small": (5, 4, 4, {}),
    "blocks_of_one": (6, 4, 1, {}),
    "long": (19, 16, 40, {}),
    "long_shift": (19, 16, 70, {"shift": True}),
    "shift": (5, 4, 8, {"shift": True}),
    "autoregressive": (9, 8, 1, {"shift": True}),
    "lay_out": (5, 4, 8, {"lay_out_only": True}),
    "lay_out_shift": (5, 4, 8, {"lay_out_only": True, "shift": True}),
}
