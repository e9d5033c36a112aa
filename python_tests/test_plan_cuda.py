"""csrc/plan_cuda.h over thousands of shapes: a small program prints what it plans, the checks are here."""

import subprocess
from itertools import product

import pytest
from host_sim import BUILD, ROOT

PROGRAM = r"""
#include <cstdio>
#include "plan_cuda.h"
int main() {
  long a[9];
  char what;
  while (std::scanf(" %c", &what) == 1) {
    for (long& x : a) if (std::scanf("%ld", &x) != 1) return 1;
    if (what == 'a') {
      const auto p = edlm::attention_plan(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]);
      std::printf("%d %d %d %ld %ld\n", p.row_tile, p.splits, p.stages, long(p.tiles), long(p.shared_bytes));
    }
    if (what == 's') std::printf("%d\n", edlm::split_keys(a[0], a[1]));
    if (what == 'n') std::printf("%ld\n", long(edlm::rms_norm_threads(a[0], a[1])));
    if (what == 'v') {
      const long parts = edlm::cuda_vocab_parts(a[0]);
      std::printf("%ld %ld\n", parts, long(edlm::cuda_part_ids(a[0], parts)));
    }
  }
}
"""


@pytest.fixture(scope="module")
def plan():
    """plan(what, shapes): one tuple of results for each shape."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source, program = BUILD / "plan.cpp", BUILD / "plan"
    source.write_text(PROGRAM)
    subprocess.run(["c++", "-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)

    def ask(what: str, shapes: list[tuple]) -> list[tuple]:
        lines = (f"{what} {' '.join(map(str, (*shape, *[0] * (9 - len(shape)))))}\n" for shape in shapes)
        done = subprocess.run([program], input="".join(lines), capture_output=True, text=True, check=True)
        results = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
        assert len(results) == len(shapes)
        return results

    return ask


H100, A100, RTX4090 = (132, 227 << 10), (108, 163 << 10), (128, 99 << 10)
ATTENTION = [
    (size, dim, length * blocks, group, kv_heads, blocks, keys, *device)
    for size, dim, length, group, kv_heads, blocks, keys, device in product(
        (2, 4), (64, 128), (1, 4, 16, 32, 128), (1, 4, 6, 8), (1, 2, 8), (1, 2, 16, 128),
        (64, 512, 4096, 40960, 131072), (H100, A100, RTX4090),
    )
]  # fmt: skip


def test_attention_plan(plan):
    for shape, (row_tile, splits, stages, tiles, shared) in zip(ATTENTION, plan("a", ATTENTION), strict=True):
        size, _, rows, group, kv_heads, blocks, keys, processors, limit = shape
        assert row_tile == 32 if size == 4 else row_tile in (16, 64, 128)
        assert shared <= limit and stages in (2, 3)
        packed = rows // blocks * group
        assert tiles >= blocks * -(-packed // row_tile)  # every row tile has a block of threads
        assert tiles <= rows * group // row_tile + blocks
        assert 1 <= splits <= 32 and splits <= max(1, -(-keys // 256))
        busy = max(blocks, -(-rows * group // row_tile)) * kv_heads
        if busy >= 0.8 * processors or keys <= 256:
            assert splits == 1
        elif keys >= 32 * 256:  # the machine is at least three quarters full, or there are hardly more splits
            assert splits >= 27 or busy * splits >= 0.75 * processors


def test_tiles_suffice_for_blocks_of_different_lengths(plan):
    mixes = [(1, 1, 1), (32, 32), (1, 127), (500, 1, 32), (33, 31, 1, 1), (5,) * 40]
    for lengths, group in product(mixes, (1, 4, 6, 8)):
        shape = (2, 128, sum(lengths), group, 8, len(lengths), 4096, *H100)
        [(row_tile, _, _, tiles, _)] = plan("a", [shape])
        assert tiles >= sum(-(-length * group // row_tile) for length in lengths)


def test_splits_cover_all_keys(plan):
    shapes = list(product([1, 2, 63, 64, 255, 256, 257, *range(300, 70000, 397)], (1, 2, 3, 7, 16, 31, 32)))
    for (keys, splits), (chunk,) in zip(shapes, plan("s", shapes), strict=True):
        assert chunk % 64 == 0 and chunk >= 256
        assert chunk * splits >= keys
        assert chunk - 64 < max(256, -(-keys // splits))  # not longer than it must be


def test_rms_norm_threads(plan):
    shapes = [
        (hidden, vector) for hidden in range(8, 32769, 8) for vector in (1, 4, 8) if hidden % vector == 0
    ]
    for (hidden, vector), (threads,) in zip(shapes, plan("n", shapes), strict=True):
        assert threads % 32 == 0 and threads > 0
        assert threads * 4 * vector >= hidden
        assert threads <= 1024 or hidden > 1024 * 4 * vector


def test_vocabulary_parts(plan):
    shapes = [(vocab,) for vocab in [*range(1, 300), *range(300, 300000, 97), 2**24 - 1]]
    for (vocab,), (parts, size) in zip(shapes, plan("v", shapes), strict=True):
        assert 1 <= parts <= 64 and size % 8 == 0
        assert parts * size >= vocab
        assert (parts - 1) * size < vocab  # no part is empty
