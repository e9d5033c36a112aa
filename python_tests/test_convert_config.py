"""The settings of training runs and conversions: defaults, what cannot be, where and in what they compute."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from convert_tools import QUICK

from edlm_engine.convert.config import ConversionConfig, TrainConfig

PLAIN = TrainConfig(steps=6, rows=2, length=4, learning_rate=0.1, device="cpu", bf16=False)


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("block_size", 13, 12), ("block_size", 0, 1), ("half_life_ratio", 0.0, 1e-6),
        ("half_life_ratio", 1.1, 1.0),
        ("half_life_ratio", -0.1, None), ("attention", "causal", "bidirectional"), ("min_level", 0.0, 1e-6),
        ("min_level", 1.0, 0.99), ("views", 0, 2), ("noisy_length", 3, 4), ("noisy_length", 13, 12),
        ("steps", 0, 1),  # and all that TrainConfig checks
    ],
)  # fmt: skip
def test_conversions_out_of_range_are_named(field, wrong, right):
    replace(QUICK, **{field: right})
    with pytest.raises(ValueError, match=field):
        replace(QUICK, **{field: wrong})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 0}, "views must be at least 1"),
        ({"noisy_length": 2}, r"noisy_length must be in block_size … length \(4 … 12\)"),
        ({"views": 2, "token_shift": True}, "without token_shift"),
        ({"noisy_length": 8, "attention": "bidirectional"}, "for attention 'block_diff'"),
        ({"views": 2, "attention": "no_clean_context"}, "for attention 'block_diff'"),
    ],
)
def test_unfit_views_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **settings)


def test_plain_noise_goes_with_every_attention():
    for attention in ("block_diff", "no_clean_context", "bidirectional"):
        for token_shift in (False, True):
            replace(QUICK, attention=attention, token_shift=token_shift)


def test_bf16_is_for_devices_that_multiply_it(monkeypatch):
    for native in (False, True):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda native=native: native)
        assert replace(PLAIN, bf16=None).with_precision().bf16 is native
        assert replace(PLAIN, bf16=not native).with_precision().bf16 is not native


def test_the_device_is_a_gpu_if_there_is_one(monkeypatch):
    for available, name in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert replace(PLAIN, device="auto").torch_device().type == name
    assert replace(PLAIN, device="cpu").torch_device().type == "cpu"
    assert str(replace(PLAIN, device="cuda:1").torch_device()) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda': torch finds no CUDA device here"):
        replace(PLAIN, device="cuda").torch_device()
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'gpu'"):
        replace(PLAIN, device="gpu").torch_device()


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("steps", 0, 1), ("rows", 0, 1), ("length", 0, 1), ("checkpoint_every", 0, 1),
        ("learning_rate", 0.0, 1e-9), ("learning_rate", math.nan, 1.0), ("learning_rate", math.inf, 1.0),
        ("muon_learning_rate", 0.0, 1e-9), ("gradient_clip", 0.0, 1e-9), ("gradient_clip", -1.0, 1.0),
        ("final_learning_rate", 0.11, 0.1), ("final_learning_rate", -0.1, 0.0),
        ("warmup_steps", 7, 6), ("warmup_steps", -1, 0), ("cooldown_steps", 7, 6), ("cooldown_steps", -1, 0),
        ("cosine_steps", 0, 1), ("optimizer", "sgd", "muon"), ("weight_decay", -0.1, 0.0),
        ("prompt_weight", 1.1, 1.0), ("prompt_weight", -0.1, 0.0), ("seed", -1, 0),
        ("seed", 2**31, 2**31 - 1),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(field, wrong, right):
    replace(PLAIN, **{field: right})
    with pytest.raises(ValueError, match=field):
        replace(PLAIN, **{field: wrong})


def test_the_cooldown_begins_behind_the_warm_up():
    replace(PLAIN, warmup_steps=2, cooldown_steps=4)
    with pytest.raises(ValueError, match=r"cooldown_steps must be in 0 … steps - warmup_steps \(4\), got 5"):
        replace(PLAIN, warmup_steps=2, cooldown_steps=5)


def test_defaults_are_the_papers():
    plain = asdict(TrainConfig())
    assert plain == {
        "steps": 1000, "rows": 16, "length": 256, "learning_rate": 1e-5, "final_learning_rate": 0.0,
        "warmup_steps": 0, "cosine_steps": None, "cooldown_steps": 0, "optimizer": "adamw",
        "muon_learning_rate": 0.02, "weight_decay": 0.0, "gradient_clip": 1.0, "prompt_weight": 1.0,
        "bf16": None, "compile": False, "device": "auto", "seed": 0, "checkpoint_every": 500,
    }  # fmt: skip
    config = ConversionConfig()
    assert plain | {"final_learning_rate": 3e-6} == {name: getattr(config, name) for name in plain}
    assert (config.optimizer, config.learning_rate, config.final_learning_rate) == ("adamw", 1e-5, 3e-6)
    assert (config.block_size, config.half_life_ratio, config.attention) == (16, 0.1, "block_diff")
    assert (config.token_shift, config.align_blocks, config.views, config.prompt_weight) == (
        False,
        False,
        1,
        1.0,
    )
