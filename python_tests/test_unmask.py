import pytest
import torch
from op_cases import ints, unmask_state
from reference import ops as reference

from edlm_engine import ops

NAN = float("nan")


def copy(state: dict) -> dict:
    return {name: tensor.clone() for name, tensor in state.items()}


def block(confidences: list[float], threshold: float, steps: int = 0, step: int = 0) -> dict:
    """The state of one block, all masked, whose row i proposes token 100 + i."""
    m = len(confidences)
    stats = torch.zeros(m, 5)
    stats[:, 4] = torch.tensor(confidences)
    return {
        "ids": torch.stack((ints([0] * m), ints(range(100, 100 + m))), dim=1),
        "stats": stats,
        "first_row": ints([0]),
        "threshold": torch.tensor([threshold]),
        "steps_per_block": ints([steps]),
        "block_length": ints([m]),
        "tokens": ints([[-1] * m]),
        "confidence": torch.zeros(1, m),
        "commit_step": ints([[-1] * m]),
        "masked": torch.ones(1, m, dtype=torch.uint8),
        "num_masked": ints([m]),
        "step": ints([step]),
        "status": ints([0]),
    }


def committed(state: dict) -> list[int]:
    return torch.where(state["masked"][0] == 0)[0].tolist()


@pytest.mark.parametrize("seed", range(30))
def test_matches_reference(seed, guarded):
    state = unmask_state(slots=24, max_block=(1, 4, 16, 32)[seed % 4], seed=seed)
    want = copy(state)
    reference.unmask(**want)
    got = {
        name: guarded(*tensor.shape, dtype=tensor.dtype).copy_(tensor) for name, tensor in copy(state).items()
    }
    ops.unmask(**got)
    for name, tensor in want.items():
        assert torch.equal(got[name].nan_to_num(-9), tensor.nan_to_num(-9)), name


@pytest.mark.parametrize(
    ("confidences", "threshold", "want"),
    [
        ([0.5, 0.9, 0.95, 0.2], 0.9, [1, 2]),
        ([0.5, 0.3, 0.7, 0.7], 0.9, [2]),
        ([0.5, 0.3, 0.7, 0.7], 2.0, [2]),
        ([0.5, 0.3], 0.0, [0, 1]),
        ([0.0, 0.0], 1.0, [0]),
    ],
)
def test_threshold(confidences, threshold, want):
    state = block(confidences, threshold)
    ops.unmask(**state)
    assert committed(state) == want
    assert state["tokens"][0, want].tolist() == [100 + j for j in want]
    assert state["commit_step"][0, want].tolist() == [0] * len(want)
    assert state["num_masked"].item() == len(confidences) - len(want)
    assert state["status"].item() == (len(want) == len(confidences))


def test_last_allowed_step_commits_what_is_left():
    state = block([0.1, 0.2, 0.3], threshold=0.9, steps=4, step=3)
    ops.unmask(**state)
    assert committed(state) == [0, 1, 2]
    assert state["status"].item() == 1
    assert state["step"].item() == 4


@pytest.mark.parametrize(("m", "n"), [(8, 4), (7, 3), (5, 5), (3, 8), (32, 1), (10, 4)])
def test_schedule_ends_in_time(m, n):
    """floor(m / n) positions per step, the first m mod n steps one more: min(m, n) steps in all."""
    state, per_step = block([0.5] * m, NAN, steps=n), []
    while state["status"].item() == 0:
        left = int(state["num_masked"])
        rows = state | {"ids": state["ids"][:left], "stats": state["stats"][:left]}
        ops.unmask(**rows)
        per_step.append(left - int(state["num_masked"]))
    assert per_step == [m // n + (i < m % n) for i in range(n)][: min(m, n)]
    assert committed(state) == list(range(m))


@pytest.mark.parametrize("bad", ["nan", "id"])
@pytest.mark.parametrize("threshold", [0.5, NAN])
def test_bad_statistics_change_nothing(bad, threshold):
    state = block([0.9, 0.1, 0.8], threshold)
    if bad == "nan":
        state["stats"][1, 4] = NAN
    else:
        state["ids"][1, 1] = -1
    before = copy(state)
    ops.unmask(**state)
    assert state["status"].item() == -1
    for name in ("tokens", "confidence", "commit_step", "masked", "num_masked", "step"):
        assert torch.equal(state[name], before[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_masked": ints([2])}, r"num_masked\[0\]: want the 3 of masked, got 2"),
        ({"first_row": ints([1])}, r"first_row\[0\]: want 3 rows within the 3 of ids, got row 1"),
        ({"masked": torch.ones(1, 3)}, r"masked: want contiguous Byte \[1, 3\] on cpu, got Float \[1, 3\]"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=f"edlm::unmask: {message}"):
        ops.unmask(**block([0.1, 0.2, 0.3], 0.5) | change)
