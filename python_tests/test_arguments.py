"""Arguments in all their forms: arrays, torch's own words, None, and the length that nobody gave."""

import inspect

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from engine_tools import ids

from edlm_engine import CapacityError, Engine, SamplingParams
from edlm_engine.params import PARAM_NAMES

PROMPT = [3, 14, 15, 92, 65]
SAMPLED = {"max_new_tokens": 20, "temperature": 1.0, "ignore_eos": True}
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("arguments") / "checkpoint")


@pytest.fixture
def engine(folder):
    with Engine(folder, dtype="float32", max_batch_size=4) as engine:
        yield engine


@pytest.mark.parametrize(("tokens", "cache", "left"), [(450, None, 62), (511, None, 1), (100, 128, 28)])
def test_the_default_length_shrinks_to_the_room(folder, tokens, cache, left):
    prompt = [5] * tokens
    with Engine(folder, kv_cache_tokens=cache) as engine:
        for params in ({}, {"max_new_tokens": None}, {"params": SamplingParams()}):
            assert len(engine.generate(prompt, ignore_eos=True, **params).token_ids) == left
        last = list(engine.stream(prompt, ignore_eos=True))[-1].generation
        assert len(last.token_ids) == left and last.finish_reason == "length"
        for given in (left + 1, 128):
            with pytest.raises(
                CapacityError, match=rf"prompt: {tokens} prompt tokens \+ {given} new ones exceed"
            ):
                engine.generate(prompt, max_new_tokens=given)
        with pytest.raises(CapacityError, match=r"\+ 1 new ones exceed"):
            engine.generate([5] * (tokens + left))


ARRAYS = {
    **{str(dtype): torch.tensor(PROMPT, dtype=dtype) for dtype in (torch.uint8, torch.int16, torch.int32)},
    **{dtype: np.array(PROMPT, dtype=dtype) for dtype in ("int8", "uint16", "uint64", "object")},
    "0-d tensors": list(torch.tensor(PROMPT)),
    "0-d tensors and ints": [3, *torch.tensor(PROMPT)[1:]],
    "0-d arrays": [np.array(i) for i in PROMPT],
    "scalars": list(np.array(PROMPT)),
}


@pytest.mark.parametrize("prompt", ARRAYS.values(), ids=ARRAYS)
def test_prompts_as_arrays(engine, prompt):
    result = engine.generate(prompt, max_new_tokens=3)
    assert result.prompt_token_ids == PROMPT and all(type(i) is int for i in result.prompt_token_ids)
    assert ids(engine.generate([prompt, prompt], max_new_tokens=3)) == [result.token_ids] * 2


@pytest.mark.parametrize(
    "prompt", (torch.tensor([1.0]), np.array([1.5]), [torch.tensor(1.0)], [None], ["w1", 3])
)
def test_prompts_that_are_none(engine, prompt):
    with pytest.raises(TypeError, match=r"prompt\[0\] must be a token id \(int\), got"):
        engine.generate(prompt)
    for whole in (torch.tensor(5), 5, None, b"w1", {"w1": 1}):
        with pytest.raises(TypeError, match="prompt must be a str, a list of token ids or a list of either"):
            engine.generate(whole)


def test_torchs_own_words(folder):
    with Engine(folder, dtype=torch.bfloat16, device=torch.device("cpu")) as engine:
        assert (engine.dtype, engine.device) == ("bfloat16", "cpu")
        assert engine.generate(PROMPT, max_new_tokens=2).token_ids
    for device in ("cuda:7", torch.device("cuda", 7)):
        with pytest.raises(ValueError, match=r"device='cuda:7': .*; use device='cpu'"):
            Engine(folder, device=device)
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda or a GPU by its number"):
        Engine(folder, device=torch.device("meta"))
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got 'float64'"):
        Engine(folder, dtype=torch.float64)


def test_none_is_the_default_of_everything(folder):
    options = list(inspect.signature(Engine).parameters)[1:]
    with Engine(folder, **dict.fromkeys(options)) as none, Engine(folder) as default:
        for name in ("device", "dtype", "stepping", "kv_cache_tokens", "num_threads", "default_params"):
            assert getattr(none, name) == getattr(default, name)
        nothing = dict.fromkeys({*PARAM_NAMES, "n", "timeout", "priority", "progress"})
        assert ids(none.generate(PROMPT, **nothing)) == ids(default.generate(PROMPT, threshold=None))
        assert ids(none.generate(PROMPT, top_k=-1, seed=1, **SAMPLED)) == ids(
            default.generate(PROMPT, seed=1, **SAMPLED)
        )
