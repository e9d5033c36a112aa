"""What becomes of a call: requests, one by one, or an error that names what is wrong with it."""

import re
import secrets
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import config_dict

from edlm_engine import CapacityError, SamplingParams
from edlm_engine.config import DecodingConfig
from edlm_engine.intake import (
    Batch,
    Intake,
    Job,
    RenderedChat,
    as_list,
    check_samples,
    check_scheduling,
    is_long,
    plain,
    sample_params,
)
from edlm_engine.models.families import read_config

CONFIG = read_config(config_dict(max_position_embeddings=64), "config.json")[0]
DECODING = DecodingConfig(127, (126,), 8, "block_causal", False)


class Letters:
    """Token i is the i-th letter; texts begin with token 0 where the tokenizer adds its own."""

    longest_piece, special = 1, {}

    def encode(self, text, *, special=True):
        if "!" in text:
            raise ValueError("no letter")
        return [0] * special + [ord(letter) - ord("a") for letter in text]


def intake(kv_cache_tokens=48, tokenizer=None, decoding=DECODING, **defaults) -> Intake:
    return Intake(Path("model"), CONFIG, decoding, kv_cache_tokens, tokenizer, SamplingParams(**defaults))


def ids(made, prompt, where="prompt") -> list[int]:
    return made.request(prompt, SamplingParams(max_new_tokens=1), where=where).prompt


def job(prompts, params=None, n=None, timeout=None, priority=0, **overrides) -> Job:
    return Job(prompts, False, params, n, timeout, priority, overrides)


def test_a_batch_is_a_request_for_each_sample_of_each_prompt():
    batch = intake(tokenizer=Letters()).batch(
        job(["bc", [5]], n=2, timeout=3, priority=4, seed=7, max_new_tokens=6)
    )
    assert [[r.prompt for r in group] for group in batch.groups] == [[[0, 1, 2]] * 2, [[5]] * 2]
    assert [r.seed for r in batch.requests] == [7, 8, 7, 8]
    assert {(r.timeout, r.priority, r.params.max_new_tokens) for r in batch.requests} == {(3.0, 4, 6)}
    assert batch.sampled and not batch.single
    own = [SamplingParams(seed=1), SamplingParams(seed=2)]
    assert not intake().batch(job([[3], [4]])).sampled
    assert [r.seed for r in intake().batch(job([[3], [4]], own)).requests] == [1, 2]


def test_results_come_in_the_shape_of_the_call():
    several, one = [["a", "b"], ["c", "d"]], [["a"]]
    assert Batch(several, False, True).shaped("abcd") == several
    assert Batch([["a"], ["b"]], False, False).shaped("xy") == ["x", "y"]
    assert Batch(one, True, True).shaped("x") == ["x"]
    assert Batch(one, True, False).shaped("x") == "x"


@pytest.mark.parametrize("wrong", ({"timeout": 0}, {"priority": 0.5}, {"n": 0}, {"params": []}))
def test_all_but_the_prompts_is_checked_by_itself(wrong):
    assert intake().check(job([None], n=3)) == ([SamplingParams()], 3)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        intake().check(job([None], **wrong))


def test_prompts_are_named_by_their_place():
    with pytest.raises(TypeError, match=r"^prompt\[1\]\[0\] must be a token id \(int\), got 'x'"):
        intake().batch(job([[3], ["x"]]))
    with pytest.raises(ValueError, match=r"^prompt is empty; at least one token is needed"):
        intake().batch(Job([[]], True, None, None, None, 0, {}))


def test_overrides_go_over_what_is_given_and_that_over_the_defaults():
    made = intake(temperature=0.5)
    assert made.params(None, {}).temperature == 0.5
    assert made.params(SamplingParams(top_k=3), {"top_p": 0.5}) == SamplingParams(top_k=3, top_p=0.5)
    with pytest.raises(TypeError, match=r"params must be SamplingParams, got \{'top_k': 3\}"):
        made.params({"top_k": 3}, {})
    with pytest.raises(TypeError, match="unknown sampling parameter 'beams'; known: max_new_tokens, policy"):
        made.params(None, {"top_q": 1, "beams": 2})
    with pytest.raises(
        ValueError, match=r"^model: stop strings need a tokenizer, and the checkpoint has none"
    ):
        made.params(None, {"stop": "x"})
    assert intake(tokenizer=Letters()).params(None, {"stop": "x"}).stop == ("x",)


def test_params_are_for_all_or_one_for_each():
    made, own = intake(), [SamplingParams(seed=1), SamplingParams(seed=2)]
    assert made.params_list(None, 3, {"seed": 5}) == [SamplingParams(seed=5)] * 3
    assert made.params_list(tuple(own), 2, {"top_k": 3}) == [p.override(top_k=3) for p in own]
    with pytest.raises(ValueError, match="2 params for 3 prompts; give one for all or one for each"):
        made.params_list(own, 3, {})


def test_blocks_are_no_longer_than_the_engines():
    assert intake().params(None, {"block_length": 8}).block_length == 8
    with pytest.raises(
        ValueError, match=r"block_length=9 exceeds the engine's 8; Engine\(..., block_length=9"
    ):
        intake().params(None, {"block_length": 9})
    one_by_one = DecodingConfig(None, (126,), 1, "causal", True)
    assert one_by_one.autoregressive and intake(decoding=one_by_one).params(None, {}).block_length is None
    with pytest.raises(ValueError, match="block_length=1: model is autoregressive, without blocks"):
        intake(decoding=one_by_one).params(None, {"block_length": 1})


def test_new_tokens_fill_what_is_left_at_most():
    def new(made, prompt, **params):
        return made.request([3] * prompt, SamplingParams(**params)).params.max_new_tokens

    assert new(intake(kv_cache_tokens=1000), 10) == 54 and new(intake(), 10) == 38
    assert new(intake(), 47) == new(intake(), 47, max_new_tokens=1) == 1
    assert new(intake(), 40, max_new_tokens=8) == 8
    for made, prompt, wanted, message in (
        (intake(), 48, None, "48 prompt tokens + 1 new ones exceed kv_cache_tokens=48"),
        (intake(), 40, 9, "40 prompt tokens + 9 new ones exceed kv_cache_tokens=48"),
        (intake(kv_cache_tokens=64), 60, 5, "60 prompt tokens + 5 new ones exceed the model's 64 positions"),
    ):
        with pytest.raises(CapacityError, match=re.escape(f"prompt: {message}")):
            new(made, prompt, max_new_tokens=wanted)
    assert new(intake(kv_cache_tokens=64), 60, max_new_tokens=4) == 4


def test_a_fresh_seed_has_63_bits(monkeypatch):
    monkeypatch.setattr(secrets, "randbits", lambda bits: 2**bits - 1)
    assert intake().request([3], SamplingParams()).seed == 2**63 - 1
    assert intake().request([3], SamplingParams(seed=0)).seed == 0


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([0, 128], ValueError, "prompt[1] is 128, outside the vocabulary [0, 128)"),
        ([0, -1], ValueError, "prompt[1] is -1, outside the vocabulary"),
        ([0, 2**63 - 1], ValueError, "prompt[1] is 9223372036854775807, outside"),
        ([0, 2**63], ValueError, "prompt[1] is a number of more than 64 bits, outside"),
        ([0, 1.0], TypeError, "prompt[1] must be a token id (int), got 1.0"),
        (b"ab", TypeError, "prompt must be a str, a list of token ids or a list of either, got b'ab'"),
        ({3: 4}, TypeError, "prompt must be a str, a list"),
        (5, TypeError, "prompt must be a str, a list"),
        ("ab", ValueError, "model: no tokenizer in the checkpoint; give token ids as the prompt"),
    ],
)
def test_ids_that_are_none(prompt, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ids(intake(), prompt)


def test_ids_and_texts():
    made = intake(tokenizer=Letters())
    for prompt in ([0, 127], (0, 127), np.array([0, 127]), torch.tensor([0, 127]), iter([0, 127])):
        found = ids(made, prompt)
        assert found == [0, 127] and {type(token) for token in found} == {int}
    assert ids(made, "ab") == [0, 0, 1]
    with pytest.raises(ValueError, match=r"^here: no letter"):
        ids(made, "!", where="here")


def test_the_template_of_a_chat_has_written_the_special_tokens():
    made = intake(tokenizer=Letters())
    assert ids(made, RenderedChat("ab")) == [0, 1]
    with pytest.raises(ValueError, match=r"^messages: no letter"):
        ids(made, RenderedChat("!"))


def test_texts_that_cannot_fit_are_not_encoded():
    made, most = intake(tokenizer=Letters()), 2**20

    def refuse(length, message):
        with pytest.raises(CapacityError, match=f"^prompt: {message}"):
            ids(made, "a" * length)

    refuse(most, rf"{most + 1} prompt tokens \+ 1 new ones exceed")
    refuse(most + 1, f"{most + 1} characters cannot fit into 48 positions; no token is longer than 1 char")
    made.tokenizer.longest_piece = most  # then it may fit
    refuse(most + 1, rf"{most + 2} prompt tokens \+ 1 new ones exceed")


def test_timeouts_and_priorities():
    assert check_scheduling(None, None) == (None, 0) and check_scheduling(np.float32(0.5), 3) == (0.5, 3)
    for priority in (-(2**31), 2**31 - 1):
        assert check_scheduling(None, priority) == (None, priority)
    for priority in (-(2**31) - 1, 2**31, 0.5):
        with pytest.raises(ValueError, match="priority must be"):
            check_scheduling(None, priority)
    for timeout in (0, -1, "1"):
        with pytest.raises(ValueError, match="timeout must be"):
            check_scheduling(timeout, 0)


def test_samples_have_seeds_that_follow_each_other():
    assert check_samples(None) is None and check_samples(1) == 1 and check_samples(4096) == 4096
    for n in (0, 4097, 1.5):
        with pytest.raises(ValueError, match="n must be"):
            check_samples(n)
    assert sample_params(SamplingParams(), 3) == [SamplingParams()] * 3
    last = SamplingParams(seed=2**63 - 1)
    assert [params.seed for params in sample_params(last, 2)] == [2**63 - 1, 0]


@pytest.mark.parametrize(
    ("prompt", "prompts", "single"),
    [
        ("ab", ["ab"], True),
        ([3, 4], [[3, 4]], True),
        (["ab", [3]], ["ab", [3]], False),
        ([], [], False),
        (np.array([3, 4]), [[3, 4]], True),
        (torch.tensor([[3], [4]]), [[3], [4]], False),
        ([np.int64(3), torch.tensor(4)], [[3, 4]], True),
    ],
)
def test_one_prompt_or_several(prompt, prompts, single):
    assert as_list(prompt) == (prompts, single)


def test_long_texts():
    assert is_long("abc", 2) and not is_long("ab", 2) and not is_long([1, 2, 3], 2)
    assert list(plain(np.array([1, 2]), "prompt")) == [1, 2]
