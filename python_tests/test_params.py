"""SamplingParams and engine options: ranges, types, and what the message says."""

import math
import re

import numpy as np
import pytest
import torch

from edlm_engine import Engine, SamplingParams
from edlm_engine.params import PARAM_NAMES
from edlm_engine.policies import Factor, Schedule, Threshold

OUT_OF_RANGE = [
    ("max_new_tokens", 0, "max_new_tokens must be in [1, 2147483647], got 0"),
    ("max_new_tokens", 10**400, "max_new_tokens must be in [1, 2147483647], got 1000"),
    ("max_new_tokens", 1.0, "max_new_tokens must be an integer, got 1.0"),
    ("max_new_tokens", True, "max_new_tokens must be an integer, got True"),
    ("threshold", 0.0, "threshold must be in (0.0, 1.0], got 0.0; threshold=None selects the fixed schedule"),
    ("threshold", 1.01, "threshold must be in (0.0, 1.0], got 1.01"),
    ("threshold", math.nan, "threshold must be a finite number, got nan"),
    ("threshold", "0.9", "threshold must be a finite number, got '0.9'"),
    ("steps_per_block", 0, "steps_per_block must be in [1, inf), got 0"),
    ("steps_per_block", 2.5, "steps_per_block must be an integer, got 2.5"),
    ("temperature", -0.1, "temperature must be in [0.0, 10000.0], got -0.1"),
    ("temperature", math.inf, "temperature must be a finite number, got inf"),
    ("temperature", 1e39, "temperature must be in [0.0, 10000.0], got 1e+39"),
    ("top_k", -2, "top_k must be in [-1, 2147483647], got -2"),
    ("top_k", 2**31, "top_k must be in [-1, 2147483647], got 2147483648"),
    ("top_k", 2.0, "top_k must be an integer, got 2.0"),
    ("top_p", 0.0, "top_p must be in (0.0, 1.0], got 0.0"),
    ("top_p", 1.5, "top_p must be in (0.0, 1.0], got 1.5"),
    ("seed", -1, "seed must be in [0, 9223372036854775807], got -1"),
    ("seed", 2**63, "seed must be in [0, 9223372036854775807], got 9223372036854775808"),
    ("stop", "", "stop[0] must be a non-empty string, got ''"),
    ("stop", ["a", 3], "stop[1] must be a non-empty string, got 3"),
    ("stop", ["ab"] * 257, "stop: 257 strings of 514 characters; at most 256 strings of 16384 characters"),
    ("stop", "x" * 16385, "stop: 1 strings of 16385 characters; at most"),
    ("stop", b"end", "stop must be a sequence, got b'end'"),
    ("stop_token_ids", range(4097), "stop_token_ids: 4097 ids; at most 4096"),
    ("ignore_eos", 1, "ignore_eos must be True or False, got 1"),
    ("stop_token_ids", 5, "stop_token_ids must be a sequence, got 5"),
    ("stop_token_ids", [1, -2], "stop_token_ids[1] must be in [0, 2147483647], got -2"),
    ("stop_token_ids", ["x"], "stop_token_ids[0] must be an integer, got 'x'"),
]


@pytest.mark.parametrize(("field", "value", "message"), OUT_OF_RANGE)
def test_out_of_range_names_the_field_and_the_range(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 2**31 - 1), ("max_new_tokens", np.int64(3)), ("threshold", 1), ("threshold", None),
        ("threshold", np.float32(0.5)), ("steps_per_block", 2**40), ("temperature", 0), ("top_k", 2**31 - 1),
        ("top_p", 1), ("seed", 2**63 - 1), ("stop_token_ids", (0,)), ("stop_token_ids", tuple(range(4096))),
        ("stop", ("x" * 16384,)), ("stop", ("ab",) * 256),
    ],
)  # fmt: skip
def test_ends_of_the_ranges_are_allowed(field, value):
    assert getattr(SamplingParams(**{field: value}), field) == value


def test_stop_is_one_string_or_several():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize("kind", (list, np.array, torch.tensor))
def test_stop_token_ids_are_any_sequence(kind):
    assert SamplingParams(stop_token_ids=kind([3, 4])).stop_token_ids == (3, 4)


def test_a_policy_or_its_short_forms():
    assert SamplingParams().commit_policy == Threshold(0.9)
    assert SamplingParams(threshold=0.5, steps_per_block=3).commit_policy == Threshold(0.5, 3)
    assert SamplingParams(threshold=None).commit_policy == Schedule()
    assert SamplingParams(threshold=None, steps_per_block=3).commit_policy == Schedule(3)
    assert SamplingParams(policy=Factor(2)).policy == SamplingParams(policy="factor:2").policy == Factor(2)
    assert SamplingParams(policy=Factor(2)).commit_policy == Factor(2)


@pytest.mark.parametrize("short", ({"threshold": 0.5}, {"threshold": None}, {"steps_per_block": 2}))
def test_a_policy_and_a_short_form_do_not_go_together(short):
    with pytest.raises(ValueError, match="give either a policy, or threshold and steps_per_block, not both"):
        SamplingParams(policy="factor:2", **short)


@pytest.mark.parametrize("policy", (3, 0.9, object(), Threshold))
def test_what_is_no_policy(policy):
    with pytest.raises(ValueError, match=r"must be one of edlm_engine\.policies, say Threshold\(0\.9\), got"):
        SamplingParams(policy=policy)


def test_the_later_of_a_policy_and_a_short_form_counts():
    short, long = SamplingParams(threshold=0.5, steps_per_block=3), SamplingParams(policy="factor:2")
    assert short.override(policy="factor:1") == SamplingParams(policy="factor:1")
    assert long.override(threshold=0.5) == SamplingParams(threshold=0.5)
    assert long.override(steps_per_block=3) == SamplingParams(steps_per_block=3)
    assert long.override(seed=1).commit_policy == Factor(2)
    assert short.override(seed=1).commit_policy == Threshold(0.5, 3)
    with pytest.raises(ValueError, match="not both"):
        short.override(policy="factor:1", threshold=0.5)


def test_params_are_values():
    assert SamplingParams(stop=["a"]) == SamplingParams(stop="a")
    assert hash(SamplingParams(stop_token_ids=[1])) == hash(SamplingParams(stop_token_ids=(1,)))
    with pytest.raises(AttributeError):
        SamplingParams().threshold = 2.0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "device",
            "tpu",
            "device must be one of auto, cpu, cuda or a GPU by its number, 'cuda:1', got 'tpu'",
        ),
        ("dtype", "float64", "dtype must be one of auto, bfloat16, float16, float32, got 'float64'"),
        ("load_format", "gguf", "load_format must be one of auto, dummy, got 'gguf'"),
        ("prefill", "full", "prefill must be one of block_causal, bidirectional, causal, got 'full'"),
        ("block_length", 0, "block_length must be a positive integer or None, got 0"),
        ("block_length", 16.0, "block_length must be a positive integer or None, got 16.0"),
        ("max_batch_size", True, "max_batch_size must be a positive integer or None, got True"),
        ("kv_cache_tokens", -5, "kv_cache_tokens must be a positive integer or None, got -5"),
        ("num_threads", 2**20, "num_threads must be at most 1024, got 1.05e+06"),
        ("max_waiting", -1, "max_waiting must be no negative integer or None, got -1"),
        ("device", 3, "device must be one of auto, cpu, cuda or a GPU by its number, 'cuda:1', got 3"),
        ("dtype", torch.float64, "dtype must be one of auto, bfloat16, float16, float32, got 'float64'"),
        ("num_threads", 0, "num_threads must be a positive integer or None, got 0"),
    ],
)
def test_engine_options(option, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Engine("anything: options are checked before the model is looked for", **{option: value})


@pytest.mark.parametrize("name", [name for name in PARAM_NAMES if name != "threshold"])
def test_none_is_the_default(name):
    assert SamplingParams(**{name: None}) == SamplingParams()
    assert SamplingParams().override(**{name: None}) == SamplingParams()


def test_top_k_minus_one_is_off():
    assert SamplingParams(top_k=-1) == SamplingParams()


@pytest.mark.parametrize("kind", [np.int8, np.uint32, np.int64])
def test_numbers_become_plain(kind):
    """Those of numpy would wrap around in sums."""
    params = SamplingParams(
        max_new_tokens=kind(110), top_k=kind(3), seed=kind(4), block_length=kind(5), stop_token_ids=[kind(6)],
        top_p=np.float16(0.5),
        temperature=np.float32(0.5), ignore_eos=np.bool_(True), steps_per_block=kind(7),
    )  # fmt: skip
    values = [getattr(params, name) for name in PARAM_NAMES] + list(params.stop_token_ids)
    assert {type(value) for value in values} <= {int, float, bool, tuple, type(None)}
    assert type(Schedule(kind(3)).steps) is int and type(Threshold(np.float32(0.5)).threshold) is float


def test_temperatures_that_would_overflow_are_greedy():
    assert SamplingParams(temperature=1e-40).temperature == 0.0
    assert SamplingParams(temperature=1e-30).temperature == 1e-30
