"""Policies: each against its formula, written out here once more, alone and in the engine."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from checkpoints import config_dict, write_ar_checkpoint, write_checkpoint
from reference import generate as reference
from test_engine_reference import assert_same, prompts

from edlm_engine import Engine, SamplingParams, ops, policies
from edlm_engine.steps.block_state import OPEN, BlockState

# policy: how many of n candidates are committed, from their sorted keys (the largest first)
FORMULAS = {
    policies.Threshold(0.6): ("p_chosen", lambda c: [x >= 0.6 for x in c]),
    policies.EntropyBound(0.8): ("entropy", lambda h: [sum(h[:i]) <= 0.8 for i in range(len(h))]),
    policies.Factor(1.5): (
        "p_chosen",
        lambda c: [(n + 1) * (1 - c[n - 1]) < 1.5 for n in range(1, len(c) + 1)],
    ),
    policies.Margin(0.3): ("margin", lambda m: [x >= 0.3 for x in m]),
    policies.Frechet(0.2): (
        "p_chosen",
        lambda c: [sum(c[:n]) - (n - 1) - (1 - c[n - 1]) > 0.2 for n in range(1, len(c) + 1)],
    ),
}


def committed(policy, stats: torch.Tensor) -> list[int]:
    """What the kernel commits in a block that is all open."""
    state = BlockState(1, len(stats), 7)
    state.begin_request(0, policy)
    state.begin_block(0, [OPEN] * len(stats))
    ids = torch.full((len(stats), len(ops.ID_COLUMNS)), 5, dtype=torch.int32)
    ops.unmask(state.records, ids, stats, torch.zeros(1, dtype=torch.int32))
    return [j for j in range(len(stats)) if not state.host.open[0, j]]


@pytest.mark.parametrize("policy", FORMULAS, ids=lambda policy: policy.rule)
@pytest.mark.parametrize("seed", range(40))
def test_formula(policy, seed):
    generator = torch.Generator().manual_seed(seed)
    stats = torch.rand(1 + seed % 20, len(ops.STAT_COLUMNS), generator=generator)
    column = {name: stats[:, at] for name, at in ops.STAT_COLUMNS.items()}
    column["p_chosen"][:] = column["p_chosen"] ** (1 / (1 + seed % 5))  # some blocks are sure
    column["entropy"][:] *= (0.05, 0.5, 2.0)[seed % 3]
    column["p_second"][:] = column["p_argmax"] * column["p_second"]
    column["margin"] = column["p_argmax"] - column["p_second"]
    name, formula = FORMULAS[policy]
    key = column[name]
    order = key.sort(descending=name != "entropy", stable=True).indices.tolist()
    taken = formula([float(key[j]) for j in order])
    count = max(1, sum(taken))
    assert taken == sorted(taken, reverse=True), "the rule takes a prefix"
    assert committed(policy, stats) == sorted(order[:count])


TEXTS = {
    "threshold:0.8": policies.Threshold(0.8),
    "threshold:0.9,max_steps=4": policies.Threshold(0.9, 4),
    "schedule": policies.Schedule(),
    "schedule:8": policies.Schedule(8),
    "entropy_bound:0.15": policies.EntropyBound(0.15),
    "factor:1": policies.Factor(1),
    "margin:0.5": policies.Margin(0.5),
    "frechet:0.25": policies.Frechet(0.25),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_form(text):
    assert policies.parse(text) == TEXTS[text] == SamplingParams(policy=text).commit_policy
    assert policies.describe(TEXTS[text]) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing:1", "no such policy; known: entropy_bound, factor, frechet, margin, schedule, threshold"),
        ("threshold:much", "'much' is no number"),
        ("threshold:2", r"threshold must be in \(0, 1\], got 2"),
        ("threshold:nan", "threshold must be a finite number"),
        ("entropy_bound", "entropy_bound takes gamma"),
        ("factor:1,steps=2", "factor takes factor"),
        ("schedule:0.5", "steps must be an integer, got 0.5"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(policy=text)


def test_text_forms_are_exact():
    for policy in (policies.Threshold(0.99999999), policies.Factor(1), policies.EntropyBound(1 / 3)):
        assert policies.parse(policies.describe(policy)) == policy
    assert policies.describe(policies.Threshold(0.9, 4)) == "threshold:0.9,max_steps=4"


def test_a_policy_of_ones_own_has_no_text_form():
    class Mine(policies.Threshold):
        pass

    with pytest.raises(ValueError, match=r"policy .*Mine\(.* has no text form; .* Threshold"):
        policies.describe(Mine(0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("policies") / "model", config_dict("qwen3"))


@pytest.mark.parametrize("stepping", ["eager", "direct"])
@pytest.mark.parametrize("policy", list(TEXTS.values()), ids=TEXTS)
def test_engine_matches_the_reference(folder, policy, stepping):
    model, params = reference.load(folder), SamplingParams(max_new_tokens=40, policy=policy, ignore_eos=True)
    with Engine(folder, dtype="float32", stepping=stepping) as engine:
        for prompt, result in zip(prompts(3), engine.generate(prompts(3), params), strict=True):
            assert_same(result, reference.generate(model, prompt, params))


@dataclass(frozen=True)
class OddPositionsFirst:
    """A policy of a user, without a native rule: all odd positions at once, then the others."""

    rule: ClassVar[None] = None
    wants: ClassVar[str] = "open"

    def parameters(self):
        return ()

    def select(self, open, stats):
        odd = torch.arange(open.shape[1]) % 2 == 1
        return torch.where((open & odd).any(1, keepdim=True), open & odd, open)


@pytest.mark.parametrize("stepping", ["eager", "direct"])
def test_a_policy_without_a_native_rule_beside_others(folder, stepping):
    """The host leads while its requests run, and only then; the others' tokens are as without it."""
    model = reference.load(folder)
    every = [
        SamplingParams(max_new_tokens=24, policy=OddPositionsFirst(), ignore_eos=True),
        SamplingParams(max_new_tokens=90, threshold=0.5, ignore_eos=True),
    ]
    with Engine(folder, dtype="float32", stepping=stepping) as engine:
        led = []
        if stepping == "direct":
            run = engine._loop._leader.run
            engine._loop._leader.run = lambda interrupted: (led.append(1), run(interrupted))
        results = engine.generate(prompts(2), every)
        assert bool(led) == (stepping == "direct")
        for prompt, params, result in zip(prompts(2), every, results, strict=True):
            assert_same(result, reference.generate(model, prompt, params))
    assert results[0].commit_steps[:16] == [1, 0] * 8


@pytest.mark.parametrize("stepping", ["eager", "direct"])
@pytest.mark.parametrize("prefill", ["block_causal", "bidirectional", "causal"])
@pytest.mark.parametrize("shift", [False, True])
def test_aligned_blocks(tmp_path, monkeypatch, stepping, prefill, shift):
    """Blocks at multiples of the block length, the first with the prompt's end; what the prompt holds there
    cannot end the text, though it is an eos."""
    from dataclasses import replace

    folder = write_checkpoint(tmp_path / "model", config_dict(dlm_type="dream" if shift else "llada"))
    chosen = Engine.__init__.__globals__["open_engine"].__globals__["choose_decoding"]
    monkeypatch.setattr("edlm_engine.assembly.choose_decoding", lambda *a: replace(chosen(*a), aligned=True))
    model = reference.load(folder)
    params = SamplingParams(max_new_tokens=37, threshold=0.5)
    asked = [*prompts(6), [5, 9, 126, 11], [7] * 17 + [126]]
    with Engine(folder, dtype="float32", prefill=prefill, stepping=stepping) as engine:
        for prompt, result in zip(asked, engine.generate(asked, params), strict=True):
            want = reference.generate(model, prompt, params, prefill=prefill, aligned=True)
            assert_same(result, want)
        chunks = list(engine.stream(asked[2], params))
    positions = sorted(p for chunk in chunks for p in chunk.positions)
    assert positions == list(range(len(chunks[-1].generation.token_ids)))
    assert chunks[0].block == range(0, 11)  # 5 of the 16 positions are the prompt's


def test_an_autoregressive_model_takes_any_policy(tmp_path):
    folder = write_ar_checkpoint(tmp_path / "ar", "qwen3")
    with Engine(folder, dtype="float32") as engine:
        want = engine.generate([5, 9], max_new_tokens=12).token_ids
        assert engine.generate([5, 9], max_new_tokens=12, policy="entropy_bound:0.1").token_ids == want
