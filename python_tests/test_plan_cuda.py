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
    if (what == 'l') std::printf("%d\n", edlm::linear_splits(a[0], a[1], a[2]));
    if (what == 'b') std::printf("%ld %ld\n", long(edlm::split_begin(a[0], a[1], a[2])),
                                 long(edlm::split_begin(a[0] + 1, a[1], a[2])));
    if (what == 'w') {
      const long steps = edlm::linear_steps(a[1], a[2]);
      const long groups = edlm::linear_groups(a[0]), padded = edlm::padded_outputs(a[0]);
      std::printf("%ld %ld %ld %ld\n", groups, padded, steps, long(edlm::group_words(a[1], a[2])));
    }
    if (what == 't') std::printf("%ld\n", long(edlm::linear_row_tile(a[0])));
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


def test_linear_splits(plan):
    """Enough blocks of threads for the machine wherever the inputs allow it, and no more than that."""
    shapes = list(product(range(1, 2400, 7), (1, 31, 32, 64, 80, 152, 300, 1100), (20, 108, 132, 148)))
    for (groups, steps, processors), (splits,) in zip(shapes, plan("l", shapes), strict=True):
        assert 1 <= splits <= 16
        assert splits == 1 or steps // splits >= 32  # every warp has at least four steps

        def busy(splits, groups=groups, processors=processors):
            return groups * splits / (-(-groups * splits // processors) * processors)

        most = min(16, max(1, steps // 32))
        enough = min(0.8, 0.85 * max(busy(n) for n in range(1, most + 1)))
        assert busy(splits) >= enough - 1e-9
        assert all(busy(fewer) < enough + 1e-9 for fewer in range(1, splits))


def test_splits_of_linear_layers_meet(plan):
    shapes = [
        (split, splits, steps) for splits in (1, 2, 3, 7, 16) for steps in range(1, 400, 13)
        for split in range(splits)
    ]  # fmt: skip
    end = 0
    for (split, splits, steps), (begin, after) in zip(shapes, plan("b", shapes), strict=True):
        assert begin == (0 if split == 0 else end) and begin <= after
        end = after
        assert split + 1 < splits or end == steps


def test_packed_weights(plan):
    shapes = list(product((1, 63, 64, 65, 151936), (4, 32, 60, 64, 100, 2560), (1, 2)))
    for (outputs, inputs, size), (groups, padded, steps, words) in zip(
        shapes, plan("w", shapes), strict=True
    ):
        assert padded == groups * 64 and padded - 64 < outputs <= padded
        assert steps * 64 - 64 < inputs * size <= steps * 64
        assert words == steps * 1024 + (64 if size == 1 else 0)
        assert words % 4 == 0  # 16 bytes


def test_row_tiles(plan):
    shapes = [(rows,) for rows in range(1, 300)]
    for (rows,), (tile,) in zip(shapes, plan("t", shapes), strict=True):
        assert tile in (8, 16, 32, 64)
        assert tile >= min(rows, 64) and (tile == 8 or tile < 2 * rows)
