import numpy as np
import pytest
import torch
from op_cases import clone, ints, unmask_state
from reference import ops as reference

from edlm_engine import ops, policies
from edlm_engine.steps.block_state import OPEN, BlockState

NAN = float("nan")


def block(confidences: list[float], policy, step: int = 0) -> tuple:
    """The state of one block, all of it open, whose row i proposes token 100 + i."""
    m = len(confidences)
    state = BlockState(1, m, 7)
    state.begin_request(0, policy)
    state.begin_block(0, [OPEN] * m)
    state.host.step[0] = step
    state.host.commit_step[0] = -1
    stats = torch.zeros(m, len(ops.STAT_COLUMNS))
    stats[:, ops.STAT_COLUMNS["p_chosen"]] = torch.tensor(confidences)
    return state, torch.stack((ints([0] * m), ints(range(100, 100 + m))), dim=1), stats, ints([0])


def unmask(state: BlockState, ids, stats, first_row):
    ops.unmask(state.records, ids, stats, first_row)


def committed(state: BlockState) -> list[int]:
    return np.flatnonzero(state.host.open[0] == 0).tolist()


def assert_same(got: BlockState, want: BlockState):
    for name in vars(want.host):
        assert np.array_equal(getattr(got.host, name), getattr(want.host, name), equal_nan=True), name


@pytest.mark.parametrize("seed", range(60))
def test_matches_reference(seed, guarded):
    state, *rows = unmask_state(slots=24, max_block=(1, 4, 16, 33)[seed % 4], seed=seed)
    want, got = clone(state), clone(state)
    reference.unmask(want, *rows)
    memory = guarded(*state.records.shape, dtype=torch.int32).copy_(state.records)
    ops.unmask(memory, *rows)
    got.records.copy_(memory)
    assert_same(got, want)


@pytest.mark.parametrize(
    ("confidences", "threshold", "want"),
    [
        ([0.5, 0.9, 0.95, 0.2], 0.9, [1, 2]),
        ([0.5, 0.3, 0.7, 0.7], 0.9, [2]),
        ([0.5, 0.3], 0.001, [0, 1]),
        ([0.0, 0.0], 1.0, [0]),
    ],
)
def test_threshold(confidences, threshold, want):
    state, *rows = block(confidences, policies.Threshold(threshold))
    unmask(state, *rows)
    assert committed(state) == want
    assert state.host.tokens[0, want].tolist() == [100 + j for j in want]
    assert state.host.commit_step[0, want].tolist() == [0] * len(want)
    assert state.host.wanted[0].tolist() == state.host.open[0].tolist()
    assert state.host.status[0] == (len(want) == len(confidences))


def test_last_allowed_step_commits_what_is_left():
    state, *rows = block([0.1, 0.2, 0.3], policies.Threshold(0.9, max_steps=4), step=3)
    unmask(state, *rows)
    assert committed(state) == [0, 1, 2]
    assert state.host.status[0] == 1 and state.host.step[0] == 4


@pytest.mark.parametrize(("m", "n"), [(8, 4), (7, 3), (5, 5), (3, 8), (32, 1), (10, 4), (6, None)])
def test_schedule_ends_in_time(m, n):
    """floor(m / n) positions per step, the first m mod n steps one more: min(m, n) steps in all."""
    state, ids, stats, first_row = block([0.5] * m, policies.Schedule(n))
    per_step = []
    while state.host.status[0] == 0:
        left = int(state.host.open[0].sum())
        unmask(state, ids[:left], stats[:left], first_row)
        per_step.append(left - int(state.host.open[0].sum()))
    n = n or m
    assert per_step == [m // n + (i < m % n) for i in range(n)][: min(m, n)]
    assert committed(state) == list(range(m))


def test_a_schedule_counts_what_is_to_fill():
    """Four of eight positions are given: two steps fill two each."""
    state = BlockState(1, 8, 7)
    state.begin_request(0, policies.Schedule(2))
    state.begin_block(0, [5, 5, OPEN, OPEN, 5, OPEN, OPEN, 5])
    stats = torch.full((4, len(ops.STAT_COLUMNS)), 0.5)
    unmask(state, torch.full((4, 2), 9, dtype=torch.int32), stats, ints([0]))
    assert committed(state) == [0, 1, 2, 3, 4, 7] and state.host.tokens[0, :5].tolist() == [5, 5, 9, 9, 5]


def test_open_and_wanted_are_two_things():
    """Statistics of a committed position change nothing; an open one without statistics stays open."""
    state = BlockState(1, 4, 7)
    state.begin_request(0, policies.Threshold(0.5))
    state.begin_block(0, [OPEN, 5, OPEN, OPEN])
    state.host.wanted[0] = [0, 1, 1, 1]
    state.host.keep_wanted[0] = 1
    ids, stats = ints([[0, 101], [0, 102], [0, 103]]), torch.full((3, len(ops.STAT_COLUMNS)), 0.9)
    unmask(state, ids, stats, ints([0]))
    assert state.host.tokens[0].tolist() == [7, 5, 102, 103]
    assert state.host.open[0].tolist() == [1, 0, 0, 0] and state.host.wanted[0].tolist() == [0, 1, 1, 1]
    assert state.host.status[0] == 0


@pytest.mark.parametrize("selected", [[], [0, 3], [2]])
def test_selected(selected):
    """What Python selected is committed; where that is nothing, the surest."""
    state, *rows = block([0.2, 0.4, 0.9, 0.1], policies.Threshold())
    state.host.rule[0] = ops.RULES["selected"]
    state.host.selected[0, selected] = 1
    unmask(state, *rows)
    assert committed(state) == (selected or [2])


@pytest.mark.parametrize("steps", [0, -3, 0.5, NAN, -float("inf"), float("inf"), 1e30])
def test_a_schedule_of_no_steps_divides_by_nothing(steps):
    """Fewer than one step are one, and more than there are positions as many as those."""
    for given in (0, 1):
        state, *rows = block([0.5, 0.6], policies.Schedule(1))
        state.host.rule_parameters[0, 0] = steps
        state.host.given[0] = given  # then there is nothing to fill, though something is open
        unmask(state, *rows)
        assert committed(state) == ([0, 1] if steps < 1 and not given else [1])


@pytest.mark.parametrize("column", ops.STAT_COLUMNS)
def test_a_nan_in_any_column_fails(column):
    state, ids, stats, first_row = block([0.9, 0.1, 0.8], policies.EntropyBound(0.5))
    stats[1, ops.STAT_COLUMNS[column]] = NAN
    unmask(state, ids, stats, first_row)
    assert state.host.status[0] == -1 and committed(state) == []


@pytest.mark.parametrize("bad", ["nan", "id"])
@pytest.mark.parametrize("policy", [policies.Threshold(0.5), policies.Schedule()])
def test_bad_statistics_change_nothing(bad, policy):
    state, ids, stats, first_row = block([0.9, 0.1, 0.8], policy)
    if bad == "nan":
        stats[1, 4] = NAN
    else:
        ids[1, 1] = -1
    before = clone(state)
    unmask(state, ids, stats, first_row)
    assert state.host.status[0] == -1
    before.host.status[0] = -1
    assert_same(state, before)


def broken(**changes) -> tuple:
    state, *rows = block([0.1, 0.2, 0.3], policies.Threshold())
    for name, value in changes.items():
        getattr(state.host, name)[0] = value
    return state.records, *rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (broken(wanted=0), None),
        ((*broken()[:3], ints([1])), r"first_row\[0\]: want 3 rows within the 3 of ids, got row 1"),
        (broken(step=-1), "state: want a step of 0 to 2147483646 in slot 0, got -1"),
        (broken(step=2**31 - 1), "state: want a step of 0 to 2147483646 in slot 0, got 2147483647"),
        (broken(rule=77), "state: want a rule of 0 to .* in slot 0, got 77"),
        (broken(block_length=4), "state: want a block_length of 1 to 3 in slot 0, got 4"),
        ((broken()[0][:, :-1].contiguous(), *broken()[1:]), "state: want records of .* words and .*, got"),
        ((broken()[0].float(), *broken()[1:]), r"state: want contiguous Int \[any, any\] on cpu, got Float"),
    ],
)
def test_bad_arguments(arguments, message):
    if message is None:
        return ops.unmask(*arguments)
    with pytest.raises(ValueError, match=f"edlm::unmask: {message}"):
        ops.unmask(*arguments)
