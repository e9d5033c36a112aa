"""Cases and inputs of every op, shared by its tests and its benchmark, and the comparison with tolerances."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
    return torch.tensor(values, dtype=torch.int32)


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

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor | int]:
        """The arguments but ids and stats; row i is slot i at position 3 i + 5."""
        n = self.rows
        scale = 4 / self.hidden_size**0.5  # logits of a standard deviation of about 4
        return {
            "hidden": tensor((n, self.hidden_size), dtype, seed),
            "weight": tensor((self.vocab, self.hidden_size), dtype, seed + 1, scale),
            "slots": torch.arange(n).int(),
            "positions": torch.arange(n).int() * 3 + 5,
            "temperature": torch.full((n,), self.temperature),
            "top_k": torch.full((n,), self.top_k).int(),
            "top_p": torch.full((n,), self.top_p),
            "seed": torch.arange(n) * -(2**60) + seed,
            "step": torch.arange(n).int() + 1,
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


def unmask_state(slots: int, max_block: int, seed: int) -> dict[str, Tensor]:
    """All arguments of unmask for random blocks: any number masked, either rule, tied confidences."""
    g = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g, dtype=torch.int32)

    masked = (torch.rand(slots, max_block, generator=g) < torch.rand(slots, 1, generator=g)).to(torch.uint8)
    num_masked = masked.sum(1).int()
    first_row = (num_masked.cumsum(0) - num_masked).int()
    rows = int(num_masked.sum())
    stats = torch.rand(rows, 5, generator=g)
    stats[:, 4] = integers(0, 12, rows) / 10
    threshold = integers(-1, 13, slots) / 10
    return {
        "ids": integers(0, 1000, rows, 2),
        "stats": stats,
        "first_row": torch.where(torch.rand(slots, generator=g) < 0.2, -1, first_row).int(),
        "threshold": torch.where(torch.rand(slots, generator=g) < 0.4, torch.nan, threshold),
        "steps_per_block": integers(0, 8, slots),
        "block_length": integers(1, max_block + 1, slots),
        "tokens": integers(0, 1000, slots, max_block),
        "confidence": torch.rand(slots, max_block, generator=g),
        "commit_step": integers(-1, 5, slots, max_block),
        "masked": masked,
        "num_masked": num_masked,
        "step": integers(0, 10, slots),
        "status": integers(0, 2, slots),
    }


def advance_state(
    slots: int,
    batch: int,
    max_block: int,
    seed: int,
    *,
    shift=False,
    autoregressive=False,
    lay_out_only=False,
) -> dict[str, Tensor | int | bool]:
    """All arguments of advance: blocks that are under way, finished, failed, at their end or at a stop id,
    some inactive, some that the host wants ended; what the op only writes is poisoned."""
    g = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g, dtype=torch.int32)

    def often(share: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=g) < share

    shift |= autoregressive
    full_length = (integers(0, 1000, slots) % max_block + 1).int()
    block_length = torch.minimum(full_length, integers(1, max_block + 1, slots))
    inside = torch.arange(max_block) < block_length[:, None]
    finished = often(0.4, slots)
    masked = (often(0.5, slots, max_block) & inside & ~finished[:, None]).to(torch.uint8)
    finished = masked.sum(1) == 0
    start = integers(max_block, 500, slots)
    state = torch.randint(0, 256, (64 * (1 + seed % 5),), generator=g, dtype=torch.uint8)
    heads, rows = batch * max_block, (1 if autoregressive else 2) * batch * max_block
    arguments = {
        "tokens": integers(0, 60, slots, max_block),
        "masked": masked,
        "clean": integers(0, 60, slots, max_block),
        "num_masked": masked.sum(1).int(),
        "block_length": block_length,
        "step": integers(0, 9, slots),
        "status": torch.where(often(0.1, slots), -1, finished.int()).int(),
        "active": often(0.8, slots).int(),
        "start": start,
        "pending": integers(int(shift), max_block + 1, slots),
        "end": (start + block_length + integers(0, 3, slots) * integers(1, max_block + 1, slots)).int(),
        "full_length": full_length,
        "stop_ids": torch.where(often(0.1, slots, 8), integers(0, 60, slots, 8), -1).int(),
    }
    written = {
        "token_ids": (rows,), "row_slots": (rows,), "positions": (rows,), "query_blocks": (2 * batch, 6),
        "head_rows": (heads,), "head_slots": (heads,), "head_positions": (heads,), "first_row": (slots,),
    }  # fmt: skip
    arguments |= {name: torch.full(shape, ABSURD, dtype=torch.int32) for name, shape in written.items()}
    arguments["control"] = ints([7, 7, 77, seed % 1000])
    arguments["snapshot"] = state
    arguments["ring"] = torch.full((3, len(state)), 99, dtype=torch.uint8)
    arguments["host"] = torch.cat((ints([seed % 1000, seed % 7 == 0]), often(0.1, slots).int()))
    mask_id = -1 if autoregressive else 3
    return arguments | {"mask_id": mask_id, "shift": shift, "lay_out_only": lay_out_only}


# slots, batch, longest block and switches of advance_state()
ADVANCE_CASES = {
    "one": (1, 1, 16, {}),
    "small": (5, 4, 4, {}),
    "blocks_of_one": (6, 4, 1, {}),
    "long": (19, 16, 40, {}),
    "long_shift": (19, 16, 70, {"shift": True}),
    "shift": (5, 4, 8, {"shift": True}),
    "autoregressive": (9, 8, 1, {"autoregressive": True}),
    "lay_out": (5, 4, 8, {"lay_out_only": True}),
    "lay_out_shift": (5, 4, 8, {"lay_out_only": True, "shift": True}),
}
