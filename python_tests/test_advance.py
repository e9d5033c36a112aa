import pytest
import torch
from op_cases import ADVANCE_CASES, advance_state, ints
from reference import ops as reference

from edlm_engine import ops


def copy(arguments: dict) -> dict:
    return {n: a.clone() if isinstance(a, torch.Tensor) else a for n, a in arguments.items()}


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("case", ADVANCE_CASES.values(), ids=ADVANCE_CASES)
def test_matches_reference(case, seed, guarded):
    slots, batch, max_block, switches = case
    want = advance_state(slots, batch, max_block, seed, **switches)
    got = {
        name: guarded(*value.shape, dtype=value.dtype).copy_(value)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in copy(want).items()
    }
    reference.advance(**want)
    ops.advance(**got)
    for name, value in want.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[name], value), name


def one_block(**changes) -> dict:
    """A block of 4 at position 10, all of its tokens there but the last, the one before it pending."""
    arguments = advance_state(1, 1, 4, 0)
    arguments |= {
        "tokens": ints([[20, 21, 22, 3]]), "masked": torch.tensor([[0, 0, 0, 1]], dtype=torch.uint8), "clean":
        ints([[16, 17, 18, 19]]), "num_masked": ints([1]), "block_length": ints([4]), "step": ints([3]),
        "status": ints([0]), "active": ints([1]), "start": ints([10]), "pending": ints([4]), "end":
        ints([17]), "full_length": ints([4]), "stop_ids": ints([[-1] * 8]), "control": ints([9, 9, 9, 4]),
        "host": ints([4, 0, 0]),
    }  # fmt: skip
    return arguments | changes


def finished(**changes) -> dict:
    done = {"tokens": ints([[20, 21, 22, 23]]), "masked": torch.zeros(1, 4, dtype=torch.uint8)}
    return one_block(num_masked=ints([0]), status=ints([1]), **(done | changes))


def test_a_block_under_way():
    a = one_block()
    ops.advance(**a)
    assert a["control"].tolist() == [1, 0, 9, 5] and a["host"].tolist() == [5, 0, 0]
    assert a["query_blocks"].tolist() == [[0, 10, 4, 14, 0, 0], [-1, 0, 0, 0, 0, 4]]
    assert a["token_ids"].tolist() == [20, 21, 22, 3, 0, 0, 0, 0]
    assert a["head_rows"].tolist() == [3, 0, 0, 0] and a["head_positions"].tolist() == [13, 0, 0, 0]
    assert torch.equal(a["ring"][4 % 3], a["snapshot"]) and a["ring"][0].eq(99).all()


def test_a_finished_block_is_committed_with_the_next_ones_first_step():
    a = finished()
    ops.advance(**a)
    assert a["control"][:2].tolist() == [1, 1]
    assert a["token_ids"].tolist() == [3, 3, 3, 0, 20, 21, 22, 23]  # what is left: 3 positions
    assert a["row_slots"].tolist() == [0, 0, 0, -1, 0, 0, 0, 0]
    assert a["query_blocks"].tolist() == [[0, 14, 3, 17, 0, 0], [0, 10, 4, 14, 0, 4]]
    assert a["masked"].tolist() == [[1, 1, 1, 0]] and a["step"].tolist() == a["status"].tolist() == [0]


def test_with_shift_the_last_clean_row_stays():
    a = one_block(shift=True, masked=torch.ones(1, 4, dtype=torch.uint8), num_masked=ints([4]))
    ops.advance(**a)
    assert a["control"][:2].tolist() == [1, 1]
    assert a["query_blocks"].tolist() == [[0, 10, 4, 14, 0, 0], [0, 9, 1, 10, 0, 4]]
    assert a["token_ids"][4:].tolist() == [19, 0, 0, 0] and a["head_rows"].tolist() == [4, 0, 1, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        finished(end=ints([14])),
        finished(stop_ids=ints([[-1, 22] + [-1] * 6])),
        one_block(stop_ids=ints([[21] + [-1] * 7])),
        one_block(status=ints([-1])),
        one_block(host=ints([4, 0, 1])),
    ],
    ids=["its end", "a stop id", "a stop id before the block's end", "failed", "the host says so"],
)
def test_what_ends_a_slot(arguments):
    ops.advance(**arguments)
    assert arguments["active"].tolist() == [0] and arguments["control"][:2].tolist() == [0, 0]
    assert arguments["row_slots"].eq(-1).all() and arguments["first_row"].tolist() == [-1]


def test_a_stop_id_behind_a_mask_does_not_count_yet():
    a = one_block(masked=torch.tensor([[0, 1, 0, 1]], dtype=torch.uint8), num_masked=ints([2]))
    a["stop_ids"] = ints([[22] + [-1] * 7])
    ops.advance(**a)
    assert a["active"].tolist() == [1]


def test_pause():
    a = one_block(host=ints([4, 1, 0]))
    ops.advance(**a)
    assert a["control"][0] == 0 and a["active"].tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_rows": ints([0] * 3)}, r"head_rows: want 4 for each of 1 to 1 slots, got 3"),
        ({"token_ids": ints([0] * 4)}, r"token_ids: want contiguous Int \[8\]"),
        ({"ring": torch.zeros(3, 16, dtype=torch.uint8)}, r"ring: want contiguous Byte \[any, 64\]"),
        ({"snapshot": torch.zeros(24, dtype=torch.uint8)}, "snapshot: want a multiple of 16 bytes, got 24"),
        ({"mask_id": -1, "shift": True}, "mask_id: none .* blocks of 1 alone, got blocks of 4"),
        ({"pending": ints([5])}, r"pending\[0\]: want 0 to 4, got 5"),
        ({"block_length": ints([5])}, r"block_length\[0\]: want 1 to 4, got 5"),
        ({"host": ints([0, 0])}, r"host: want contiguous Int \[3\]"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        ops.advance(**(one_block() | changes))


def test_opcheck():
    torch.library.opcheck(torch.ops.edlm.advance.default, tuple(one_block().values()))
