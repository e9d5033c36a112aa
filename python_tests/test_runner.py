"""The runner: what a step moves, computes and tells, with a model that only notes what it is asked."""

from types import SimpleNamespace

import pytest
import torch

from edlm_engine import ops, policies
from edlm_engine.core.observers import Observers
from edlm_engine.core.runner import Runner
from edlm_engine.steps.block_state import OPEN, BlockState

WIDTH = 4


class Model:
    """Predicts token 5 for all, with rising probability by row, and notes the head's arguments."""

    def __init__(self):
        self.head, self.asked, self.log = self, [], []

    def forward(self, inputs, cache):
        self.log.append("forward")
        return torch.zeros(len(inputs.head_rows), 8)

    def row_stats(self, hidden, records, slots, positions, forbidden, ids, stats):
        self.asked.append((len(hidden), forbidden, ids, stats))
        ids.fill_(5)
        stats.fill_(0.5)
        stats[:, ops.STAT_COLUMNS["p_chosen"]] = torch.linspace(0.5, 0.9, len(hidden))

    def buffers(self):
        return ["the model's"]


class State(BlockState):
    def __init__(self, log, mask=7, slots=2):
        super().__init__(slots, WIDTH, mask, apart=True)
        self.log = log

    def upload(self):
        self.log.append("upload")
        super().upload()

    def download(self):
        self.log.append("download")
        super().download()


def begun(mask=7, slots=2, policy=None, length=WIDTH) -> tuple[Runner, Model, State]:
    model = Model()
    state = State(model.log, mask, slots)
    for slot in range(slots):
        state.begin_request(slot, policy or policies.Threshold())
        state.begin_sequence(slot, 0, [], 64, WIDTH, ())
        state.begin_block(slot, [OPEN] * length)
        state.host.active[slot] = 1
    return Runner(model, None, state), model, state


def inputs_of(slots: int, rows: int, of: int = 2):
    """`rows` open positions in each of so many slots, the first ones of those that there are."""
    count = slots * rows
    first = torch.full((of,), -1, dtype=torch.int32)
    first[:slots] = torch.arange(slots, dtype=torch.int32) * rows
    of_heads = torch.zeros(count, dtype=torch.int32)
    return SimpleNamespace(head_rows=of_heads, head_slots=of_heads, head_positions=of_heads, first_row=first)


def test_a_step_goes_up_and_comes_down_again():
    runner, model, state = begun()
    runner.step(inputs_of(2, WIDTH))
    assert model.log == ["upload", "forward", "download"]
    assert state.host.open.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]  # the surest of each: 0.9 is for one
    assert state.host.step.tolist() == [1, 1] and state.host.tokens[0].tolist() == [7, 7, 7, 5]


def test_a_step_of_prompts_alone_leaves_the_block_state_where_it_is():
    runner, model, state = begun()
    runner.step(inputs_of(2, 0))
    assert model.log == ["forward"] and not model.asked and not state.host.step.any()


@pytest.mark.parametrize(("mask", "forbidden"), [(None, -1), (0, 0), (7, 7)])
def test_the_mask_is_never_chosen(mask, forbidden):
    runner, model, _ = begun(mask)
    runner.step(inputs_of(2, WIDTH))
    assert model.asked[0][1] == forbidden


@pytest.mark.parametrize("length", (1, 3, 4))
def test_buffers_grow_and_stay(length):
    """To powers of two; then they are the same memory for all that fits."""
    runner, model, state = begun(slots=8, length=length)
    places, most = {}, 0
    for slots in (1, 3, 2, 3, 5, 8, 8, 1):
        state.upload()
        runner.compute(inputs_of(slots, length, 8))
        count, _, ids, stats = model.asked[-1]
        assert ids.shape == (count, len(ops.ID_COLUMNS)) and ids.dtype == torch.int32
        assert stats.shape == (count, len(ops.STAT_COLUMNS)) and stats.dtype == torch.float32
        capacity = len(runner.buffers()[0])
        most = max(most, count)
        assert capacity & (capacity - 1) == 0 and most <= capacity < 2 * most
        assert places.setdefault(capacity, ids.data_ptr()) == ids.data_ptr()
    ids, stats, of_model = runner.buffers()
    assert len(ids) == len(stats) == {1: 8, 3: 32, 4: 32}[length] and of_model == "the model's"


class OnlyTheFirst(policies.Threshold):
    rule = None

    def select(self, open, stats):
        assert stats.p_chosen.shape == open.shape
        return torch.arange(open.shape[1]).expand_as(open) == 0


def test_a_policy_without_a_native_rule_selects_in_its_slots():
    runner, _, state = begun(policy=(own := OnlyTheFirst()))
    runner.step(inputs_of(2, WIDTH), {own: [1]})
    assert state.host.open.tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]  # else the surest


def test_moments():
    runner, model, _ = begun()
    observers = Observers()
    observers.begin = lambda moment: model.log.append(moment)
    observers.end = lambda moment: model.log.append(f"/{moment}")
    runner = Runner(model, None, runner.state, observers)
    runner.step(inputs_of(2, WIDTH))
    moments = ["forward", "forward", "/forward", "commit", "/commit", "wait", "download", "/wait"]
    assert model.log == ["upload", *moments]
