"""block_attention: the CUDA kernels under host_sim against the reference."""

from dataclasses import dataclass

import pytest
import torch
from host_sim import DTYPES, HostSim, close, poisoned
from reference import ops as reference

ABSURD_PAGE = 2147480000


@dataclass(frozen=True)
class Case:
    """blocks: (slot, length, kv_len, causal) of each query block; slot -1: padding."""

    blocks: tuple
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 64
    page_size: int = 64
    dtype: torch.dtype = torch.bfloat16
    splits: int | None = None  # None: what the plan says
    stages: int | None = None

    def tensors(self) -> dict:
        generator = torch.Generator().manual_seed(len(self.blocks) + self.head_dim)
        slots = 1 + max(b[0] for b in self.blocks)
        max_pages = max(-(-b[2] // self.page_size) for b in self.blocks) + 1
        page_table = torch.full((slots, max_pages), ABSURD_PAGE, dtype=torch.int32)
        order = torch.randperm(slots * max_pages, generator=generator).to(torch.int32)
        caches = [poisoned(len(order), self.kv_heads, self.page_size, self.head_dim) for _ in range(2)]
        for slot in range(slots):
            longest = max((b[2] for b in self.blocks if b[0] == slot), default=0)
            for page in range(-(-longest // self.page_size)):
                page_table[slot, page] = order[slot * max_pages + page]
                used = min(self.page_size, longest - page * self.page_size)
                for cache in caches:  # NaN past the longest length
                    cache[page_table[slot, page], :, :used] = torch.randn(
                        self.kv_heads, used, self.head_dim, generator=generator
                    )
        rows, table = 0, []
        for slot, length, kv_len, causal in self.blocks:
            table.append([slot, kv_len - length, length, kv_len, causal, rows])
            rows += length
        q = torch.randn(rows, self.heads, self.head_dim, generator=generator) * 2
        return {
            "q": q.to(self.dtype), "k_cache": caches[0].to(self.dtype), "v_cache": caches[1].to(self.dtype),
            "blocks": torch.tensor(table, dtype=torch.int32), "page_table": page_table,
        }  # fmt: skip


def run(simulator: HostSim, case: Case, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's result and the reference's; both NaN in rows that no block has."""
    t = case.tensors()
    scale, out = case.head_dim**-0.5, poisoned(*t["q"].shape, dtype=case.dtype)
    simulator.run(
        "block_attention", seed, ["out"], dtype=DTYPES[case.dtype], heads=case.heads, kv_heads=case.kv_heads,
        head_dim=case.head_dim, scale=scale, slots=len(t["page_table"]), max_pages=t["page_table"].shape[1],
        pages=len(t["k_cache"]), page_size=case.page_size, rows=len(t["q"]), num_blocks=len(t["blocks"]),
        splits=case.splits, stages=case.stages, out=out, **t,
    )  # fmt: skip
    want = reference.block_attention(t["q"], t["k_cache"], t["v_cache"], t["blocks"], t["page_table"], scale)
    for slot, _, length, _, _, row in t["blocks"].tolist():
        if slot < 0:
            want[row : row + length] = torch.nan
    return out, want


def check(simulator: HostSim, case: Case, seed: int = 0):
    out, want = run(simulator, case, seed)
    assert torch.equal(out.isnan(), want.isnan())
    assert close(out[~want.isnan()], want[~want.isnan()], case.dtype)


@pytest.fixture(scope="module")
def plain() -> HostSim:
    return HostSim("plain")


@pytest.fixture(scope="module")
def sanitized() -> HostSim:
    return HostSim("sanitized")


ROWS = [  # (rows, heads, kv_heads): packed rows from 1 to 128 and beyond one tile; groups 1, 4, 6, 8
    (1, 1, 1), (1, 4, 1), (4, 4, 1), (3, 6, 1), (16, 4, 1), (8, 8, 1), (32, 4, 1), (17, 6, 1), (16, 8, 1),
    (128, 1, 1), (33, 8, 2), (65, 4, 2),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "heads", "kv_heads"), ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_rows_and_groups_without_a_prefix(plain, rows, heads, kv_heads, dtype):
    check(plain, Case(((0, rows, rows, False),), heads, kv_heads, dtype=dtype), seed=1)


@pytest.mark.parametrize("kv_len", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200])
@pytest.mark.parametrize(("page_size", "stages"), [(16, 2), (64, 3), (128, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_lengths_around_tiles_and_pages(plain, kv_len, page_size, stages, dtype):
    check(plain, Case(((0, 1, kv_len, False),), page_size=page_size, stages=stages, dtype=dtype))


@pytest.mark.parametrize("splits", [1, 2, 3, 5, 32])
@pytest.mark.parametrize(("length", "heads"), [(1, 4), (4, 8), (32, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_splits(plain, splits, length, heads, causal):
    check(plain, Case(((0, length, 1100, causal),), heads, splits=splits), seed=splits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
def test_splits_of_other_types(plain, dtype):
    check(plain, Case(((0, 5, 700, True),), 4, head_dim=128, dtype=dtype, splits=3))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("length", [1, 16, 32])
def test_head_size_128(plain, dtype, length):
    check(plain, Case(((0, length, 150, False),), head_dim=128, dtype=dtype))


@pytest.mark.parametrize("splits", [None, 2])
def test_sequences_of_all_phases_in_one_launch(plain, splits):
    blocks = (
        (0, 32, 32, False), (-1, 3, 1, False), (1, 8, 300, False), (1, 8, 308, False), (2, 70, 70, True),
        (3, 1, 577, True), (-1, 1, 1, False),
    )  # fmt: skip
    check(plain, Case(blocks, 8, 2, splits=splits), seed=4)


def test_more_blocks_than_lanes(plain):
    check(plain, Case(tuple((slot, 2, 2 + slot, slot % 2 == 0) for slot in range(40)), 6, 1))


def test_causal_rows_without_keys_in_a_split(plain):
    check(plain, Case(((0, 40, 300, True),), 4, splits=2), seed=2)


SANITIZED = [
    Case(((0, 3, 130, False),), 6, page_size=16),
    Case(((0, 16, 70, True), (-1, 2, 1, False), (1, 5, 9, False)), 4, dtype=torch.float16, stages=2),
    Case(((0, 32, 96, False),), 4, head_dim=128, stages=3),
    Case(((0, 9, 600, True),), 4, dtype=torch.float32, splits=2),
    Case(((0, 4, 600, True),), 4, head_dim=128, splits=3),
]


@pytest.mark.parametrize("case", SANITIZED, ids=range(len(SANITIZED)))
@pytest.mark.parametrize("seed", [0, 5])
def test_under_the_sanitizers(sanitized, case, seed):
    check(sanitized, case, seed)


def test_order_of_threads_and_blocks_changes_no_bit(plain):
    case = Case(((0, 32, 550, False), (1, 4, 300, True)), 4, splits=2)
    results = [run(plain, case, seed)[0] for seed in range(4)]
    assert all(torch.equal(result, results[0]) for result in results)
