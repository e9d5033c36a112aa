"""Defects of other decoders for block diffusion: each test names whose, and shows that it is not ours."""

import json

import pytest
import torch
from checkpoints import EOS, MASK, config_dict, random_weights, write_checkpoint

from edlm_engine import Engine, ops
from edlm_engine.policies import Schedule, Threshold
from edlm_engine.steps.block_state import OPEN, BlockState

PROMPT = [3, 14, 15, 92, 65]


def step(state: BlockState, confidence: dict[int, list[float]], ids=None):
    """One unmask step with these confidences of the masked positions of each slot."""
    first_row = torch.full((len(state.step),), -1, dtype=torch.int32)
    rows = []
    for slot, values in confidence.items():
        first_row[slot] = len(rows)
        rows += values
    stats = torch.zeros(len(rows), 5)
    stats[:, 0] = stats[:, 4] = torch.tensor(rows)
    chosen = torch.arange(len(rows)) + 10 if ids is None else torch.tensor(ids)
    ops.unmask(state.records, torch.stack([chosen, chosen], 1).int(), stats, first_row)


def block(length: int, policy, slots=1) -> BlockState:
    state = BlockState(slots, 8, MASK)
    for slot in range(slots):
        state.begin_request(slot, policy)
        state.begin_block(slot, [OPEN] * length)
    return state


def left(state: BlockState, slot=0) -> list[int]:
    return state.open[slot].nonzero().flatten().tolist()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with Engine(write_checkpoint(tmp_path_factory.mktemp("peers") / "model"), dtype="float32") as engine:
        yield engine


def test_sdar_top_k_larger_than_the_masks_left_overwrites_nothing():
    """A schedule of 3 per step meets 2 masks: k = min(n, masks)."""
    state = block(6, Schedule(2))
    state.open[0, :4] = state.wanted[0, :4] = 0
    state.tokens[0, :4] = torch.tensor([1, 2, 3, 4], dtype=torch.int32)
    step(state, {0: [0.2, 0.1]})
    assert state.tokens[0].tolist() == [1, 2, 3, 4, 10, 11, MASK, MASK]
    assert left(state) == [] and int(state.status[0]) == 1


def test_sdar_top_k_of_one_does_not_make_every_confidence_one(engine):
    """Confidences are those of the raw logits: top_k=1 must not accept the whole block at once."""
    params = {"max_new_tokens": 16, "threshold": 0.9, "ignore_eos": True}
    greedy = engine.generate(PROMPT, **params)
    sampled = engine.generate(PROMPT, temperature=1.0, top_k=1, seed=1, **params)
    assert (sampled.token_ids, sampled.confidences) == (greedy.token_ids, greedy.confidences)
    assert sampled.nfe > 1 and min(sampled.confidences) < 0.9


def favouring_mask(folder, token=MASK):
    """A model whose greatest logit is always that of `token`, by far."""
    config = config_dict("qwen2", block_size=8)
    weights = random_weights(config)
    bias = torch.zeros(64)
    bias[0] = 1000.0  # carried through the residual stream to the head's first input
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * 0.01 + bias
    weights["model.norm.weight"][:] = 1.0
    weights["lm_head.weight"][:, 0] = 0.0
    weights["lm_head.weight"][token, 0] = 10.0
    return write_checkpoint(folder, config, weights)


@pytest.mark.parametrize("temperature", (0.0, 1.0))
def test_sdar_and_sglang_mask_id_is_never_emitted(tmp_path, temperature):
    """However likely the model thinks it: blocks end without masks, and their keys and values are stored."""
    params = {"max_new_tokens": 24, "temperature": temperature, "seed": 1, "ignore_eos": True}
    with Engine(favouring_mask(tmp_path / "mask"), dtype="float32") as engine:
        result = engine.generate(PROMPT, **params)
        assert len(result.token_ids) == 24 and MASK not in result.token_ids
    with Engine(favouring_mask(tmp_path / "other", token=50), dtype="float32") as engine:
        assert engine.generate(PROMPT, **params).token_ids == [50] * 24  # the model does what it is made for


def test_jetengine_fallback_takes_the_most_confident_alone_and_in_a_batch():
    """Nothing reaches the threshold: the best position goes, not the leftmost, whatever runs beside it."""
    confidences = {0: [0.1, 0.3, 0.2], 1: [0.3, 0.1, 0.2], 2: [0.1, 0.2, 0.3]}
    together = block(3, Threshold(0.9), slots=3)
    step(together, confidences)
    for slot, values in confidences.items():
        alone = block(3, Threshold(0.9))
        step(alone, {0: values})
        best = max(range(3), key=values.__getitem__)
        assert left(alone) == left(together, slot) == [j for j in range(3) if j != best]


def test_lmdeploy_best_confidence_is_reported_as_it_is():
    """The forced best keeps its own score; the threshold is not written over it."""
    state = block(3, Threshold(0.9))
    step(state, {0: [0.25, 0.5, 0.125]})
    assert left(state) == [0, 2] and float(state.confidence[0, 1]) == 0.5


def test_dinfer_close_to_the_best_is_not_the_best():
    """Only the best goes below the threshold, not everything within 1e-5 of it."""
    state = block(3, Threshold(0.9))
    step(state, {0: [0.5, 0.5000001, 0.4999999]})
    assert left(state) == [0, 2]


def test_threshold_is_inclusive_and_in_fp32():
    state = block(4, Threshold(0.9))
    at = float(torch.tensor(0.9))
    step(state, {0: [at, 0.95, float(torch.nextafter(torch.tensor(0.9), torch.tensor(0.0))), 1.0]})
    assert left(state) == [2]


def test_dinfer_last_position_below_the_threshold_is_not_accepted():
    """Its factor rule takes a failing last slot along."""
    state = block(4, Threshold(0.5))
    step(state, {0: [0.9, 0.8, 0.7, 0.4]})
    assert left(state) == [3]


def test_llama_cpp_temperature_zero_is_greedy(engine):
    expected = engine.generate(PROMPT, max_new_tokens=20).token_ids
    for seed in range(3):
        assert engine.generate(PROMPT, max_new_tokens=20, temperature=0, seed=seed).token_ids == expected
    assert engine.generate(PROMPT, max_new_tokens=20, temperature=0, top_k=3, top_p=0.1).token_ids == expected


def row_statistics(hidden, weight, forbidden=-1):
    rows, slots = len(hidden), torch.zeros(len(hidden), dtype=torch.int32)
    ids, stats = torch.empty(rows, 2, dtype=torch.int32), torch.empty(rows, 5)
    state = block(1, Threshold())
    positions = torch.arange(rows, dtype=torch.int32)
    ops.row_stats(hidden, weight, state.records, slots, positions, forbidden, ids, stats)
    return ids, stats


def test_llama_cpp_entropy_grows_with_doubt():
    weight = torch.eye(16)
    sure, unsure = torch.zeros(16), torch.zeros(16)
    sure[3], unsure[3] = 8.0, 1.0
    stats = row_statistics(torch.stack([sure, unsure]), weight)[1]
    assert 0 <= float(stats[0, 2]) < float(stats[1, 2]) <= float(torch.tensor(16.0).log()) + 1e-6


def test_chatllm_ranks_by_probability_and_not_by_raw_logit():
    """The first row has the greater logit, the second the greater confidence: the second goes first."""
    high, low = torch.full((16,), 9.0), torch.zeros(16)
    high[3], low[5] = 10.0, 5.0
    ids, stats = row_statistics(torch.stack([high, low]), torch.eye(16))
    assert float(stats[0, 3]) > float(stats[1, 3]) and float(stats[0, 4]) < float(stats[1, 4])
    state = block(2, Schedule())
    ops.unmask(state.records, ids, stats, torch.zeros(1, dtype=torch.int32))
    assert left(state) == [0] and int(state.tokens[0, 1]) == 5


def test_chatllm_equal_confidences_have_a_strict_order():
    state = block(8, Schedule(3))
    step(state, {0: [0.5] * 8})
    assert left(state) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("length", (31, 32, 33, 100, 400))
def test_chatllm_prompts_over_32_tokens(engine, length):
    assert len(engine.generate([7] * length, max_new_tokens=4, ignore_eos=True).token_ids) == 4


@pytest.mark.parametrize("vocab", (16, 100, 1000))
def test_diffulex_greedy_ties_go_to_the_lowest_id(vocab):
    hidden, weight = torch.ones(2, 16), torch.zeros(vocab, 16)
    weight[[7, 11, vocab - 1]] = 1.0
    assert row_statistics(hidden, weight)[0].tolist() == [[7, 7], [7, 7]]
    assert row_statistics(hidden, weight, forbidden=7)[0].tolist() == [[11, 11], [11, 11]]


def test_sdar_stop_id_inside_a_block_ends_and_cuts(engine):
    """The text ends at the id, whatever the block holds behind it, and no further block is begun."""
    params = {"max_new_tokens": 64, "temperature": 1.0, "seed": 4, "ignore_eos": True}
    free = engine.generate(PROMPT, **params)
    end = next(i for i in range(2, 14) if free.token_ids[i] not in free.token_ids[:i])
    result = engine.generate(PROMPT, stop_token_ids=[free.token_ids[end]], **params)
    assert result.token_ids == free.token_ids[: end + 1] and result.finish_reason == "stop"
    assert result.text == " ".join(f"w{i}" for i in free.token_ids[:end])
    assert result.nfe <= max(free.commit_steps[:16]) + 1


def test_efficient_dlm_family_steps_that_are_too_few_leave_no_mask(engine):
    """steps_per_block caps the steps; the last of them commits what is left."""
    for steps in (1, 2, 5):
        result = engine.generate(
            PROMPT, max_new_tokens=40, threshold=1.0, steps_per_block=steps, ignore_eos=True
        )
        assert len(result.token_ids) == 40 and MASK not in result.token_ids
        assert max(result.commit_steps) < steps and result.nfe <= 3 * steps


def test_vllm_nan_fails_loudly():
    """A NaN confidence commits nothing, whichever row it is in."""
    for values in ([float("nan"), 0.95], [0.95, float("nan")]):
        state = block(2, Threshold(0.9))
        step(state, {0: values})
        assert int(state.status[0]) == -1 and left(state) == [0, 1]


def test_dream_config_that_says_autoregressive_prefill_is_still_block_diffusion(tmp_path):
    """A wrong paradigm in the config may choose the prefill, never a causal mask inside generated blocks."""
    folder = write_checkpoint(tmp_path / "model", config_dict(dlm_paradigm="autoregressive"))
    with Engine(folder, dtype="float32") as engine:
        assert engine.decoding.prefill == "causal" and not engine.decoding.autoregressive
        blocks = []
        step = engine._loop._runner.step
        engine._loop._runner.step = lambda inputs, selecting: (
            blocks.append(inputs.query_blocks.tolist()),
            step(inputs, selecting),
        )
        engine.generate(PROMPT, max_new_tokens=16, ignore_eos=True)
    assert blocks[0][-1][4] == 1  # the prompt
    assert {tuple(forward[0][1:5]) for forward in blocks} == {(5, 16, 21, 0)}


def test_eos_of_the_generation_config_stops_too(tmp_path):
    """Base configs name one eos, chat configs another; both end a sequence."""
    folder = write_checkpoint(tmp_path / "model")
    with Engine(folder, dtype="float32") as engine:
        free = engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True).token_ids
    eos = free[4]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with Engine(folder, dtype="float32") as engine:
        result = engine.generate(PROMPT, max_new_tokens=30)
    assert EOS not in free[:5] and result.finish_reason == "eos"
    assert result.token_ids == free[: free.index(eos) + 1]
