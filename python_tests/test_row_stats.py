import pytest
import torch
from op_cases import STATS_CASES, StatsCase, assert_close, ints
from reference import ops as reference

from edlm_engine import ops

# Products and sums are fp32 in both dtypes (bf16 inputs multiply exactly): only their order differs.
RTOL, ATOL = 1e-4, 1e-5


def run(inputs: dict, guarded=None) -> tuple[torch.Tensor, torch.Tensor]:
    make = guarded or (lambda *shape, dtype, fill: torch.full(shape, fill, dtype=dtype))
    n = len(inputs["hidden"])
    ids = make(n, 2, dtype=torch.int32, fill=0)
    stats = make(n, 5, dtype=torch.float32, fill=0)
    ops.row_stats(**inputs, ids=ids, stats=stats)
    return ids, stats


@pytest.mark.parametrize("case", STATS_CASES.values(), ids=STATS_CASES)
def test_matches_reference(case, dtype, guarded):
    inputs = case.inputs(dtype)
    inputs["slots"][0] = -1 if case.rows > 1 else 0  # padding
    ids, stats = run(inputs, guarded)
    want_ids, want_stats = reference.row_stats(**inputs)
    assert torch.equal(ids, want_ids)
    assert_close(stats, want_stats, RTOL, ATOL)


def one_hot_inputs(logits: torch.Tensor, **changes) -> dict:
    """Inputs whose logits are these [rows, V], exactly: hidden = 1, weight = the logits themselves."""
    rows, vocab = logits.shape
    case = StatsCase(rows, rows, vocab, **changes)
    return case.inputs(torch.float32) | {"hidden": torch.eye(rows), "weight": logits.T.contiguous()}


@pytest.mark.parametrize("ties", [(5, 6), (63, 64), (127, 128), (0, 511, 512), (700, 2999), (15, 16, 2048)])
@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_ties_go_to_the_lowest_id(ties, temperature):
    logits = torch.zeros(3, 3000)
    logits[1, list(ties)] = 8.0
    ids, stats = run(one_hot_inputs(logits))
    assert ids[:, 0].tolist() == [0, ties[0], 0]
    assert stats[1, 0] == stats[1, 1] == stats[1, 4], "a tied runner-up has the same probability"
    filtered = run(one_hot_inputs(logits, temperature=1.0, top_k=1))[0]
    assert filtered[:, 1].tolist() == [0, ties[0], 0], "top-k 1 is the argmax, ties to the lowest id"
    tiny = run(one_hot_inputs(logits, temperature=1.0, top_p=1e-9))[0]
    assert tiny[:, 1].tolist() == [0, ties[0], 0]


def test_forbidden_id_counts_neither_in_the_choice_nor_in_the_normaliser(dtype):
    case = StatsCase(4, 64, 500)
    inputs = case.inputs(dtype)
    best = run(inputs)[0]
    inputs["weight"][best[0, 0]] *= 4
    forbidden = int(best[0, 0])
    _, stats = run(inputs | {"forbidden_id": forbidden})
    rest = torch.cat((inputs["weight"][:forbidden], inputs["weight"][forbidden + 1 :]))
    without, want = run(inputs | {"weight": rest})
    assert_close(stats, want, RTOL, ATOL)
    ids = run(inputs | {"forbidden_id": forbidden})[0]
    assert torch.equal(ids, without + (without >= forbidden))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
def test_bad_logits_spoil_their_row_alone(poison, sampling, dtype):
    case = StatsCase(9, 64, 700, **sampling)
    inputs = case.inputs(dtype)
    want_ids, want_stats = run(inputs)
    inputs["hidden"] = inputs["hidden"].abs()
    inputs["hidden"][3, 5] = poison
    inputs["weight"] = inputs["weight"].abs()  # inf stays +inf
    ids, stats = run(inputs)
    assert ids[3].tolist() == [-1, -1]
    assert bool(stats[3].isnan().all())
    healthy = torch.arange(9) != 3
    want_ids, want_stats = reference.row_stats(**inputs)
    assert torch.equal(ids[healthy], want_ids[healthy])
    assert_close(stats[healthy], want_stats[healthy], RTOL, ATOL)


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.3}, {"temperature": 1.3, "top_k": 50, "top_p": 0.8}]
)
def test_a_row_does_not_depend_on_its_batch(sampling, dtype):
    """Bit by bit: alone, in another place, among other rows and in another slot."""
    case = StatsCase(13, 80, 2500, forbidden_id=7, **sampling)
    inputs = case.inputs(dtype)
    ids, stats = run(inputs)
    order = torch.randperm(13)
    by_row = {name: inputs[name][order].contiguous() for name in ("hidden", "slots", "positions")}
    moved_ids, moved_stats = run(inputs | by_row)
    assert torch.equal(moved_ids, ids[order])
    assert torch.equal(moved_stats, stats[order])
    for row in (0, 7, 12):
        alone = {name: inputs[name][row : row + 1] for name in ("hidden", "slots", "positions")}
        one_id, one_stats = run(inputs | alone)
        assert torch.equal(one_id[0], ids[row])
        assert torch.equal(one_stats[0], stats[row])


def test_frequencies_match_the_softmax():
    """Chi-square of 20,000 draws, one per position, against softmax(z / temperature)."""
    draws, temperature = 20000, 0.7
    z = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, 1.5, -3.0, 0.0])
    case = StatsCase(draws, 1, 8, temperature=temperature)
    inputs = case.inputs(torch.float32) | {"hidden": torch.ones(draws, 1), "weight": z[:, None].contiguous()}
    inputs |= {"slots": torch.zeros(draws).int(), "positions": torch.arange(draws).int()}
    counts = run(inputs)[0][:, 1].bincount(minlength=8)
    expected = (z / temperature).softmax(-1) * draws
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 24.3, (
        f"counts {counts.tolist()}"
    )  # the 0.1 % point; the draws are fixed, so it never flakes


def test_philox_known_answers():
    """From the authors' kat_vectors: all zeros, all ones, digits of pi."""
    low = 0xFFFFFFFF
    cases = [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([low] * 4, (low, low), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, want in cases:
        assert reference.philox(torch.tensor(counter), key).tolist() == want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": ints([4])}, r"slots\[0\]: want -1 or less than 1, got 4"),
        ({"forbidden_id": 1000}, r"forbidden_id: want -1 or a row of weight \(1000\), got 1000"),
        ({"state": torch.zeros(1, 7).int()}, "state: want records of .* words and .*, got 7"),
        ({"weight": torch.zeros(5, 63)}, r"weight: want .*\[any, 64\].* got Float \[5, 63\]"),
        ({"weight": torch.zeros(0, 64)}, "weight: want 1 to 2.24 - 1 rows, got 0"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=f"edlm::row_stats: {message}"):
        run(STATS_CASES["one"].inputs(torch.float32) | change)
