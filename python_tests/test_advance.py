import numpy as np
import pytest
import torch
from op_cases import ADVANCE_CASES, Advance, advance_state, ints
from reference import ops as reference

from edlm_engine import ops, policies
from edlm_engine.steps.block_state import OPEN, BlockState
from edlm_engine.steps.inputs import StepBuffer


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("case", ADVANCE_CASES.values(), ids=ADVANCE_CASES)
def test_matches_reference(case, seed, guarded):
    slots, batch, max_block, switches = case
    want = advance_state(slots, batch, max_block, seed, **switches)
    got = want.clone()
    memory = [
        guarded(*t.shape, dtype=t.dtype).copy_(t) if isinstance(t, torch.Tensor) else t
        for t in got.arguments()
    ]
    reference.advance(want.state, want.buffer, want.control, want.link, want.flags)
    ops.advance(*memory)
    got.state.records, got.buffer.buffer, got.control, got.link = memory[:4]
    for name, value in got.tensors().items():
        assert torch.equal(value, want.tensors()[name]), name


def one_block(
    flags=ops.SNAPSHOT | ops.TAKE | ops.LAY_OUT, pause=0, stop=0, shift=False, **changes
) -> Advance:
    """A block of 4 at position 10, all of its tokens there but the last, the one before it pending."""
    state = BlockState(1, 4, 3)
    fields = {
        "tokens": [20, 21, 22, 3], "open": [0, 0, 0, 1], "wanted": [0, 0, 0, 1], "clean": [16, 17, 18, 19],
        "block_length": 4, "step": 3, "active": 1, "start": 10, "pending": 4, "end": 17, "full_length": 4,
        "stop_ids": -1, "mask_id": 3,
    } | changes  # fmt: skip
    for name, value in fields.items():
        getattr(state.host, name)[0] = value
    link = torch.full((4, state.records.numel()), 99, dtype=torch.int32)
    link[0, :3] = ints([4, pause, stop])
    flags |= ops.SHIFT if shift else 0
    return Advance(state, StepBuffer(1, 4, 1, shift), ints([9, 9, 9, 4, 0, 0, 0, 0]), link, flags)


def finished(**changes) -> Advance:
    return one_block(**{"tokens": [20, 21, 22, 23], "open": 0, "wanted": 0, "status": 1} | changes)


def advance(a: Advance):
    ops.advance(*a.arguments())
    return a.buffer.inputs


def test_a_block_under_way():
    a = one_block()
    before = a.state.records.clone()
    inputs = advance(a)
    assert a.control[:4].tolist() == [1, 0, 9, 5] and a.link[0, :3].tolist() == [5, 0, 0]
    assert inputs.query_blocks.tolist() == [[0, 10, 4, 14, 0, 0], [-1, 0, 0, 0, 0, 4]]
    assert inputs.token_ids.tolist() == [20, 21, 22, 3, 0, 0, 0, 0]
    assert inputs.head_rows.tolist() == [3, 0, 0, 0] and inputs.head_positions.tolist() == [13, 0, 0, 0]
    assert torch.equal(a.link[1 + 4 % 3], before[0]) and a.link[1].eq(99).all()


def test_a_finished_block_is_committed_with_the_next_ones_first_step():
    a = finished()
    inputs = advance(a)
    assert a.control[:2].tolist() == [1, 1]
    assert inputs.token_ids.tolist() == [3, 3, 3, 0, 20, 21, 22, 23]  # what is left: 3 positions
    assert inputs.slots.tolist() == [0, 0, 0, -1, 0, 0, 0, 0]
    assert inputs.query_blocks.tolist() == [[0, 14, 3, 17, 0, 0], [0, 10, 4, 14, 0, 4]]
    assert a.state.host.open.tolist() == a.state.host.wanted.tolist() == [[1, 1, 1, 0]]
    assert a.state.host.step[0] == a.state.host.status[0] == 0


def test_with_shift_the_last_clean_row_stays():
    a = one_block(shift=True, open=1, wanted=1)
    inputs = advance(a)
    assert a.control[:2].tolist() == [1, 1]
    assert inputs.query_blocks.tolist() == [[0, 10, 4, 14, 0, 0], [0, 9, 1, 10, 0, 4]]
    assert inputs.token_ids[4:].tolist() == [19, 0, 0, 0] and inputs.head_rows.tolist() == [4, 0, 1, 2]


@pytest.mark.parametrize(
    "a",
    [
        finished(end=14),
        finished(stop_ids=[-1, 22] + [-1] * 6),
        one_block(stop_ids=[21] + [-1] * 7),
        one_block(status=-1),
        one_block(stop=1),
    ],
    ids=["its end", "a stop id", "a stop id before the block's end", "failed", "the host says so"],
)
def test_what_ends_a_slot(a):
    inputs = advance(a)
    assert a.state.host.active[0] == 0 and a.control[:2].tolist() == [0, 0]
    assert inputs.slots.eq(-1).all() and inputs.first_row.tolist() == [-1]


def test_what_was_given_cannot_end_the_text():
    stop = {"stop_ids": [21] + [-1] * 7}
    for given, active in (([0, 1, 0, 0], 1), ([1, 0, 0, 0], 0)):
        a = one_block(given=given, **stop)
        advance(a)
        assert a.state.host.active[0] == active
    assert not a.state.host.given[0, 1:].any()


def test_the_next_block_has_nothing_given():
    a = finished(given=[1, 1, 0, 0])
    advance(a)
    assert not a.state.host.given.any()


def test_a_stop_id_behind_a_mask_does_not_count_yet():
    a = one_block(open=[0, 1, 0, 1], stop_ids=[22] + [-1] * 7)
    advance(a)
    assert a.state.host.active[0] == 1


def test_wanted_rows_need_not_be_open():
    inputs = advance(one_block(wanted=[1, 0, 1, 1]))
    assert inputs.head_rows.tolist() == [0, 2, 3, 0] and inputs.head_slots.tolist() == [0, 0, 0, -1]


def test_pause():
    a = one_block(pause=1)
    advance(a)
    assert a.control[0] == 0 and a.state.host.active[0] == 1


@pytest.mark.parametrize("shift", [False, True])
def test_compact_is_the_same_without_padding(shift):
    """Rows by slot, the clean ones first; each predicts what it predicts among fixed places."""
    for seed in range(20):
        a = advance_state(7, 7, 6, seed, shift=shift, lay_out_only=True)
        a.state.host.start[:] += 6
        b = a.clone()
        ops.advance(*a.arguments())
        ops.advance(b.state.records, b.buffer.buffer, b.control, None, b.flags | ops.COMPACT)
        stopped = a.link[0, 2:9].numpy() != 0  # nobody said so to the other
        rows, blocks, heads = b.control[4:7].tolist()
        compact, padded = b.buffer.leading(rows, blocks, heads), a.buffer.inputs

        def facts(inputs, slots):
            places = list(zip(inputs.slots.tolist(), inputs.positions.tolist(), strict=True))
            tokens = dict(zip(places, inputs.token_ids.tolist(), strict=True))
            query = {
                tuple(block[:5]): places[block[5]]
                for block in inputs.query_blocks.tolist()
                if block[0] in slots
            }
            wanted = [
                (slot, position, places[row])
                for row, slot, position in zip(
                    inputs.head_rows.tolist(),
                    inputs.head_slots.tolist(),
                    inputs.head_positions.tolist(),
                    strict=True,
                )
                if slot in slots
            ]
            return {k: v for k, v in tokens.items() if k[0] in slots}, query, wanted

        slots = set(np.flatnonzero(~stopped).tolist())
        assert facts(compact, slots) == facts(padded, slots)
        assert (
            compact.slots.min() >= 0
            and len(set(zip(compact.slots.tolist(), compact.positions.tolist(), strict=True))) == rows
        )
        for slot, first in enumerate(compact.first_row.tolist()):
            assert (first >= 0) == bool(b.state.host.active[slot])
            assert (
                first < 0
                or compact.head_slots[first : first + 1].tolist() in ([slot], [])
                or not b.state.host.wanted[slot].any()
            )


def test_blocks_of_one_that_the_row_before_predicts_have_no_rows():
    state = BlockState(2, 1, None)
    for slot, token in ((0, 5), (1, 6)):
        state.begin_request(slot, policies.Threshold())
        state.begin_sequence(slot, 10, [token], 20, 1, ())
        state.begin_block(slot, [OPEN])
        state.host.active[slot] = 1
    buffer, control = StepBuffer(2, 1, 2, True), torch.zeros(8, dtype=torch.int32)
    ops.advance(state.records, buffer.buffer, control, None, ops.LAY_OUT | ops.COMPACT | ops.SHIFT)
    assert control[4:7].tolist() == [2, 2, 2]
    inputs = buffer.leading(2, 2, 2)
    assert inputs.token_ids.tolist() == [5, 6] and inputs.positions.tolist() == [9, 9]
    assert inputs.head_rows.tolist() == [0, 1] and inputs.head_positions.tolist() == [10, 10]


def two_slots(**changes) -> Advance:
    """Two active slots, of which a step has places for one; the changes are the other's."""
    state = BlockState(2, 4, 3)
    for slot in range(2):
        fields = {"active": 1, "block_length": 4, "full_length": 4, "start": 10, "end": 20, "stop_ids": -1}
        for name, value in fields.items():
            getattr(state.host, name)[slot] = value
    for name, value in changes.items():
        getattr(state.host, name)[1] = value
    flags = ops.TAKE | ops.LAY_OUT
    return Advance(state, StepBuffer(2, 4, 1, False), torch.zeros(8, dtype=torch.int32), None, flags)


def test_a_slot_without_a_place_becomes_inactive():
    a = two_slots()
    advance(a)
    assert a.state.host.active.tolist() == [1, 0]


def overlapping() -> tuple:
    """The control words lie in the block state."""
    a = one_block()
    return (a.state.records, a.buffer.buffer, a.state.records[0, :8], a.link, a.flags)


NOBODY = (torch.zeros(0, BlockState(1, 4, 3).records.shape[1], dtype=torch.int32), None)


def bad(index: int, value, **changes) -> tuple:
    arguments = list(one_block(**changes).arguments())
    arguments[index] = value
    return tuple(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            bad(1, torch.zeros(40, dtype=torch.int32)),
            "inputs: want 48 for each of 1 to 1 slots and 1 more, got 40",
        ),
        (bad(1, None), "inputs: want them exactly where a step is laid out"),
        (bad(2, torch.zeros(4, dtype=torch.int32)), r"control: want contiguous Int \[8\]"),
        (bad(3, None), "link: want one for a snapshot"),
        (bad(3, torch.zeros(4, 16, dtype=torch.int32)), r"link: want contiguous Int \[any, \d+\]"),
        (one_block(pending=5).arguments(), "state: want a pending of 0 to 4 in slot 0, got 5"),
        (one_block(pending=0, shift=True).arguments(), "state: want a pending of 1 to 4 in slot 0, got 0"),
        (one_block(block_length=5).arguments(), "state: want a block_length of 1 to 4 in slot 0, got 5"),
        (
            two_slots(block_length=2**30).arguments(),
            "state: want a block_length of 1 to 4 in slot 1, got 1073",
        ),
        (two_slots(pending=-5).arguments(), "state: want a pending of 0 to 4 in slot 1, got -5"),
        (
            one_block(start=0, pending=0, shift=True, wanted=1).arguments(),
            "state: want position 0 unwanted in slot 0, since with SHIFT no row predicts it",
        ),
        (one_block(start=-1).arguments(), "state: want a start of 0 to 2147483643 in slot 0, got -1"),
        (one_block(start=2**31 - 1).arguments(), "state: want a start of 0 to .* in slot 0, got 2147483647"),
        (bad(2, ints([0, 0, 0, -1, 0, 0, 0, 0])), r"control\[3\]: want 0 to 2147483646 snapshots, got -1"),
        (bad(2, ints([0, 0, 0, 2**31 - 1, 0, 0, 0, 0])), r"control\[3\]: want .* got 2147483647"),
        (bad(4, 64), "flags: want a sum of flags, 0 to 31, got 64"),
        (bad(4, -(2**32)), "flags: want a sum of flags, 0 to 31, got -4294967296"),
        ((*NOBODY, ints([0] * 8), torch.zeros(2, 0).int(), 0), "link: want a slot whose end it can ask for"),
        (overlapping(), "state: want memory apart from control, got some of its"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"edlm::advance: {message}"):
        ops.advance(*arguments)


def test_opcheck():
    torch.library.opcheck(torch.ops.edlm.advance.default, one_block().arguments())
