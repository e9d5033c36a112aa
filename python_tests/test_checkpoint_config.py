"""config.json: keys, types, families, and what is refused rather than run wrongly."""

import pytest
from checkpoints import config_dict

from edlm_engine import CheckpointError
from edlm_engine.models.families import read_config


def read(**changes):
    return read_config(config_dict(**changes), "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "no such family here; known: "),
        ({"hidden_size": None}, "key 'hidden_size' is missing"),
        ({"vocab_size": "128"}, "key 'vocab_size' must be of type int, got '128'"),
        ({"num_hidden_layers": 2.0}, "key 'num_hidden_layers' must be of type int, got 2.0"),
        ({"num_hidden_layers": True}, "key 'num_hidden_layers' must be of type int, got True"),
        ({"num_hidden_layers": 0}, "key 'num_hidden_layers' must be at least 1, got 0"),
        ({"rms_norm_eps": "1e-6"}, "key 'rms_norm_eps' must be of type float, got '1e-6'"),
        ({"mask_token_id": [127]}, r"key 'mask_token_id' must be of type int, got \[127\]"),
        ({"eos_token_id": "</s>"}, "key 'eos_token_id' must be an id or a list of ids, got '</s>'"),
        ({"eos_token_id": [1, None]}, r"key 'eos_token_id' must be an id or a list of ids, got \[1, None\]"),
        ({"block_size": 0}, "key 'block_size' must be at least 1, got 0"),
        ({"dlm_paradigm": "diagonal"}, "key 'dlm_paradigm' is 'diagonal'; known: autoregressive, bidirect"),
        ({"dlm_type": "mdlm"}, "key 'dlm_type' is 'mdlm'; known: dream, llada"),
        ({"num_attention_heads": 3}, "num_attention_heads 3 is no multiple of num_key_value_heads 2"),
        ({"head_dim": 24}, "head_dim 24 is no multiple of 16"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' has a kernel"),
        ({"use_sliding_window": True}, "sliding windows are not supported"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope type 'longrope' is not supported"),
        ({"rope_parameters": "x"}, "key 'rope_parameters' must be of type dict, got 'x'"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(CheckpointError, match=rf"^config\.json: .*{message}"):
        read(**changes)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 500000},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": None},
    ],
)
def test_rope_base_of_old_and_new_config_files(rope):
    assert read(**rope)[0].rope_theta == 5e5
    config = {**config_dict(), **rope}  # null is what some writers put for "not set"
    assert read_config(config, "config.json")[0].rope_theta == 5e5


@pytest.mark.parametrize(
    ("paradigm", "prefill"),
    [("bidirectional", "bidirectional"), ("block_diff", "block_causal"), ("autoregressive", "causal"),
     (None, "bidirectional")],
)  # fmt: skip
def test_paradigm_sets_the_prefill(paradigm, prefill):
    assert read(dlm_paradigm=paradigm)[1].prefill == prefill


def test_diffusion_keys():
    _, decoding = read(block_size=8, eos_token_id=[3, 4], mask_token_id=7, dlm_type="dream")
    assert (decoding.block_length, decoding.eos_token_ids, decoding.mask_token_id) == (8, (3, 4), 7)
    assert decoding.token_shift and not decoding.autoregressive
    assert not read()[1].token_shift


def test_family_is_found_by_model_type_too():
    assert read(architectures=None)[1].mask_token_id == 127


@pytest.mark.parametrize(
    ("changes", "head_dim"), [({}, 16), ({"head_dim": None}, 16), ({"head_dim": 32}, 32)]
)
def test_head_size(changes, head_dim):
    assert read(**changes)[0].head_dim == head_dim


def test_parameter_count(tmp_path):
    from checkpoints import random_weights

    for shape in ("qwen2", "qwen3"):
        config = config_dict(shape)
        total = sum(weight.numel() for weight in random_weights(config).values())
        assert read_config(config, "config.json", random_weights(config))[0].num_parameters == total
