"""Requests that cannot be served: a readable message, and nothing started."""

import re

import numpy as np
import pytest
import torch
from checkpoints import config_dict, write_ar_checkpoint, write_checkpoint

from edlm_engine import CapacityError, Engine, SamplingParams


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("bad_input") / "checkpoint")
    with Engine(folder, kv_cache_tokens=300) as engine:
        yield engine


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Without tokenizer or chat template; more cache than positions."""
    folder = write_checkpoint(tmp_path_factory.mktemp("bare") / "checkpoint", tokenizer=False)
    with Engine(folder, kv_cache_tokens=2000) as engine:
        yield engine


def refuse(engine, error, message, prompt, params=None, **overrides):
    """The call fails with exactly this message and reaches no thread; so does the same call as a stream."""
    with pytest.raises(error, match=re.escape(message)) as caught:
        engine.generate(prompt, params, **overrides)
    assert caught.type is error and engine._loop._thread is None
    if not isinstance(prompt, list) and not isinstance(params, list):  # a stream is of one prompt
        with pytest.raises(error, match=re.escape(message)):
            engine.stream(prompt, params, **overrides)


@pytest.mark.parametrize("prompt", ("", "   "))
def test_empty_prompt(engine, prompt):
    refuse(engine, ValueError, "prompt is empty; at least one token is needed", prompt)


@pytest.mark.parametrize("prompt", ([], (), np.zeros(0, int), torch.zeros(0, dtype=torch.long)))
def test_no_prompts_give_no_results(engine, prompt):
    assert engine.generate(prompt) == [] == engine.generate(prompt, n=3)
    assert engine._loop._thread is None
    with pytest.raises(ValueError, match="prompt is empty; at least one token is needed"):
        engine.stream(prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, 128, 2], "prompt[1] is 128, outside the vocabulary [0, 128)"),
        ([1, 2, -1], "prompt[2] is -1, outside the vocabulary [0, 128)"),
        ([10**30], "prompt[0] is a number of more than 64 bits, outside the vocabulary [0, 128)"),
        ([10**5000], "prompt[0] is a number of more than 64 bits, outside the vocabulary [0, 128)"),
        ([[1], [2, 500]], "prompt[1][1] is 500, outside the vocabulary [0, 128)"),
        ([[1], []], "prompt[1] is empty; at least one token is needed"),
        (["w1", ""], "prompt[1] is empty; at least one token is needed"),
    ],
)
def test_ids_name_their_place(engine, prompt, message):
    refuse(engine, ValueError, message, prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, 2.0], "prompt[1] must be a token id (int), got 2.0"),
        ([1, True], "prompt[1] must be a token id (int), got True"),
        ({1, 2}, "prompt must be a str, a list of token ids or a list of either, got {1, 2}"),
        ([1, "w2"], "prompt[1] must be a token id (int), got 'w2'"),
        ([1, None], "prompt[1] must be a token id (int), got None"),
        ([[1], [2, [3]]], "prompt[1][1] must be a token id (int), got [3]"),
        (None, "prompt must be a str, a list of token ids or a list of either, got None"),
        (7, "prompt must be a str, a list of token ids or a list of either, got 7"),
        (b"w1", "prompt must be a str, a list of token ids or a list of either, got b'w1'"),
        ({"prompt": "w1"}, "prompt must be a str, a list of token ids or a list of either, got {'prompt'"),
        (["w1", b"w2"], "prompt[1] must be a str, a list of token ids or a list of either, got b'w2'"),
    ],
)
def test_prompts_of_a_wrong_type(engine, prompt, message):
    refuse(engine, TypeError, message, prompt)


def test_longer_than_the_cache(engine):
    message = "prompt: 200 prompt tokens + 101 new ones exceed kv_cache_tokens=300"
    refuse(engine, CapacityError, message, [1] * 200, max_new_tokens=101)
    refuse(engine, CapacityError, "prompt[1]: 300 prompt tokens + 1 new ones exceed", [[1], [1] * 300],
           max_new_tokens=1)  # fmt: skip


def test_longer_than_the_positions(bare):
    message = "prompt: 500 prompt tokens + 13 new ones exceed the model's 512 positions"
    refuse(bare, CapacityError, message, [1] * 500, max_new_tokens=13)
    refuse(bare, CapacityError, "exceed the model's 512 positions", [1], max_new_tokens=2**30)


def test_no_tokenizer(bare):
    refuse(bare, ValueError, "no tokenizer in the checkpoint; give token ids as the prompt", "w1")
    refuse(bare, ValueError, "stop strings need a tokenizer, and the checkpoint has none", [1], stop="x")


def test_unknown_and_wrong_parameters(engine):
    message = "unknown sampling parameter 'temprature'; known: max_new_tokens, policy, threshold, "
    refuse(engine, TypeError, message, "w1", temprature=1)
    refuse(
        engine, TypeError, "params must be SamplingParams, got {'threshold': 0.5}", "w1", {"threshold": 0.5}
    )
    refuse(engine, ValueError, "threshold must be in (0.0, 1.0], got 7", "w1", threshold=7)
    refuse(engine, ValueError, "top_p must be in (0.0, 1.0], got 0", "w1", SamplingParams(), top_p=0)


def test_params_list_of_a_wrong_length(engine):
    every = [SamplingParams()] * 3
    refuse(
        engine, ValueError, "3 params for 2 prompts; give one for all or one for each", ["w1", "w2"], every
    )
    refuse(engine, TypeError, "params must be SamplingParams, got 5", ["w1", "w2"], [SamplingParams(), 5])


def test_list_with_one_bad_prompt_starts_nothing(engine):
    refuse(engine, ValueError, "prompt[3] is empty", ["w1", "w2", "w3", "", "w5"])


@pytest.mark.parametrize("new", (1, 100))
def test_the_whole_cache_and_every_position_can_be_used(tmp_path, new):
    """The limits are exact: one token more is refused above."""
    folder = write_checkpoint(tmp_path / "full", config_dict(max_position_embeddings=200))
    with Engine(folder, kv_cache_tokens=200, max_batch_size=2) as engine:
        for result in engine.generate([[1] * (200 - new)] * 2, max_new_tokens=new, ignore_eos=True):
            assert len(result.token_ids) == new


def test_autoregressive_checkpoints_check_their_prompts_too(tmp_path):
    with Engine(write_ar_checkpoint(tmp_path / "ar")) as engine:
        refuse(engine, ValueError, "prompt is empty", "")
        assert len(engine.generate([1], max_new_tokens=3, ignore_eos=True).token_ids) == 3


def test_cache_smaller_than_a_page(tmp_path):
    with Engine(write_checkpoint(tmp_path / "tiny"), kv_cache_tokens=10) as engine:
        assert len(engine.generate([1] * 5, max_new_tokens=5, ignore_eos=True).token_ids) == 5
        with pytest.raises(CapacityError, match="exceed kv_cache_tokens=10"):
            engine.generate([1] * 5, max_new_tokens=6)
