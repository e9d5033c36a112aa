"""row_stats: the CUDA kernels under host_sim against the reference, from the same logits."""

import math

import pytest
import torch
from host_sim import DTYPES, HostSim, poisoned
from reference import ops as reference

from edlm_engine.policies import Threshold
from edlm_engine.steps.block_state import BlockState

SLOTS = 4
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def simulator(request) -> HostSim:
    return HostSim(request.param)


def settings(temperature=0.0, top_k=0, top_p=1.0) -> BlockState:
    """Per slot; slot 3 is always greedy."""
    state = BlockState(SLOTS, 1, None)
    for slot, seed in enumerate((1, 2**40 + 7, -3, 4)):
        own = temperature if slot < 3 else 0.0
        state.begin_request(slot, Threshold(), temperature=own, top_k=top_k, top_p=top_p, seed=seed)
    state.host.step[:] = [0, 5, 100, 2]
    return state


def logits_of(rows: int, vocab: int, dtype, scale=3.0) -> torch.Tensor:
    return (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)) * scale).to(dtype)


def run(
    simulator: HostSim, logits: torch.Tensor, own: BlockState, forbidden=-1, seed=0, parts=None, slots=None
):
    """ids and stats of the kernel and of the reference."""
    rows, vocab = logits.shape
    slots = torch.tensor([i % SLOTS for i in range(rows)] if slots is None else slots, dtype=torch.int32)
    positions = torch.arange(rows, dtype=torch.int32) * 1000 + 17
    ids, stats = poisoned(rows, 2, dtype=torch.int32), poisoned(rows, 5)
    simulator.run(
        "row_stats", seed, ["ids", "stats"], dtype=DTYPES[logits.dtype], rows=rows, vocab=vocab,
        row_slots=slots, positions=positions, forbidden_id=forbidden, parts=parts, logits=logits, ids=ids,
        stats=stats, state=own.records, slots=SLOTS, words=own.records.shape[1],
    )  # fmt: skip
    want = reference_of(logits, slots, positions, own, forbidden)
    return ids, stats, *want


def reference_of(logits, slots, positions, own, forbidden):
    """Row by row, with hidden = 1: the weight then is the logits, NaN and infinities included."""
    ids, stats = torch.zeros(len(logits), 2, dtype=torch.int32), torch.zeros(len(logits), 5)
    for i, row in enumerate(logits.float()):
        one = slice(i, i + 1)
        ids[one], stats[one] = reference.row_stats(
            torch.ones(1, 1), row[:, None], own.records, slots[one], positions[one], forbidden
        )
    return ids, stats


def check(ids, stats, want_ids, want_stats):
    assert ids.tolist() == want_ids.tolist()
    assert torch.equal(stats.isnan(), want_stats.isnan())
    assert ((stats - want_stats).abs().nan_to_num(0) <= 2e-5 * (1 + want_stats.abs().nan_to_num(0))).all()


@DTYPE
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    ("vocab", "parts"), [(1, 1), (7, 1), (64, 1), (1000, 1), (1003, 3), (9000, 2), (4100, 64)]
)
def test_greedy_and_sampled(simulator, dtype, vocab, parts, temperature):
    check(*run(simulator, logits_of(3, vocab, dtype), settings(temperature), parts=parts))


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (5, 1.0), (0, 0.3), (0, 0.9), (50, 0.8), (3, 1e-6), (600, 0.999)]
)
@pytest.mark.parametrize("vocab", [50, 1001])
def test_top_k_and_top_p(simulator, vocab, top_k, top_p):
    check(*run(simulator, logits_of(4, vocab, torch.float32), settings(1.3, top_k, top_p), seed=2))


def test_top_p_keeps_the_shortest_prefix_among_ties(simulator):
    logits = torch.zeros(24, 40)  # every id weighs the same: the lowest ids stay
    ids, stats, want_ids, want_stats = run(simulator, logits, settings(1.0, 0, 0.49), slots=[0, 1, 2] * 8)
    check(ids, stats, want_ids, want_stats)
    assert len(set(ids[:, 1].tolist())) > 5
    assert ids[:, 1].max() < 20


@DTYPE
def test_ties_go_to_the_lowest_id(simulator, dtype):
    logits = logits_of(3, 9000, dtype)
    logits[:, [8999, 4500, 77, 4600]] = 30.0
    ids, stats, want_ids, want_stats = run(simulator, logits, settings(), parts=2)
    check(ids, stats, want_ids, want_stats)
    assert ids[:, 0].tolist() == [77] * 3
    assert torch.equal(stats[:, 0], stats[:, 1])


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_forbidden_id_counts_as_minus_infinity(simulator, temperature):
    logits = logits_of(3, 300, torch.float32)
    logits[:, 123] = 50.0
    check(*run(simulator, logits, settings(temperature, 4 * (temperature > 0)), forbidden=123))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 255, 1002])
def test_bad_values(simulator, value, at):
    logits = logits_of(3, 1003, torch.float32)
    logits[1, at] = value
    check(*run(simulator, logits, settings(0.9, 7, 0.9), parts=2))


def test_row_without_any_finite_logit(simulator):
    logits = logits_of(2, 33, torch.float32)
    logits[0] = -math.inf
    check(*run(simulator, logits, settings(0.9)))


def test_padding_rows_are_left_alone(simulator):
    ids, stats, want_ids, want_stats = run(
        simulator, logits_of(4, 70, torch.float32), settings(), slots=[2, -1, 0, -1]
    )
    assert (ids[1::2] == -77).all() and stats[1::2].isnan().all()
    check(ids[::2], stats[::2], want_ids[::2], want_stats[::2])


def test_steep_and_flat_rows(simulator):
    check(*run(simulator, logits_of(2, 2000, torch.float32, scale=1e-3), settings()))
    check(*run(simulator, logits_of(2, 2000, torch.float32, scale=500.0), settings()))


def test_order_of_threads_changes_no_bit(simulator):
    logits, own = logits_of(4, 9000, torch.bfloat16), settings(0.8, 40, 0.9)
    results = [run(simulator, logits, own, seed=seed, parts=2)[:2] for seed in range(3)]
    assert all(torch.equal(a, b) for other in results for a, b in zip(other, results[0], strict=True))
