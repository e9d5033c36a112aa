import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from edlm_engine import ops, options
from edlm_engine.config import ModelConfig
from edlm_engine.core import memory
from edlm_engine.hardware import gpu
from edlm_engine.rope import Rope

BUILD = {"cuda": True, "cuda_architectures": ["80-real", "90a-real", "100"]}
QWEN3_4B = ModelConfig(
    vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32, num_kv_heads=8,
    head_dim=128, rms_norm_eps=1e-6, rope=Rope(1e6), max_positions=40960, tied_head=True, qkv_bias=False,
    qk_norm=True,
)  # fmt: skip
GIB = 2**30


def pretend(monkeypatch, init=lambda: None, capability=(9, 0)):
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Something")


def raises(message: str):
    def init():
        raise RuntimeError(message)

    return init


@pytest.mark.parametrize(
    ("architectures", "capability", "fits"),
    [
        (["80-real"], (8, 0), True), (["80-real"], (8, 9), True), (["80-real"], (9, 0), False),
        (["80"], (9, 0), True), (["80"], (7, 5), False), (["90a-real"], (9, 0), True),
        (["90a-real"], (10, 0), False), (["100"], (12, 0), True), (["80-real", "90a-real"], (8, 6), True),
        (["100f-real"], (10, 0), True), ([], (9, 0), False), (["89-real"], (8, 6), False),
    ],
)  # fmt: skip
def test_covers(architectures, capability, fits):
    assert gpu.covers(architectures, capability) == fits


def test_usable(monkeypatch):
    pretend(monkeypatch)
    assert gpu.why_unusable(BUILD) is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Found no NVIDIA driver on your system. Please check", "no usable GPU: Found no NVIDIA driver"),
        ("The NVIDIA driver on your system is too old (found version 11040). Please", r"too old .*11040\)$"),
    ],
)
def test_drivers(monkeypatch, said, message):
    pretend(monkeypatch, raises(said))
    assert re.search(message, gpu.why_unusable(BUILD))


def test_build_without_cuda():
    assert gpu.why_unusable({"cuda": False}) == "this build has no CUDA kernels"


def test_architecture_that_the_build_lacks(monkeypatch):
    pretend(monkeypatch, capability=(7, 5))
    assert gpu.why_unusable(BUILD) == (
        "NVIDIA Something has compute capability 7.5, this build has kernels for 80-real, 90a-real, 100 only"
    )


def test_head_size(monkeypatch):
    pretend(monkeypatch)
    assert gpu.why_unusable(BUILD, QWEN3_4B) is None
    reason = gpu.why_unusable(BUILD, replace(QWEN3_4B, head_dim=96))
    assert reason == "the model's head size is 96, there are kernels for 64 and 128"


@pytest.mark.parametrize(
    ("architectures", "capability", "reason"),
    [
        (["80-real", "90a-real", "100"], (9, 0), None),
        (["80-real", "90a-real", "100"], (12, 0), None),
        (["89-real"], (8, 9), None),
        (["80-real", "90a-real", "100"], (8, 6), "float8 needs compute capability 8.9, this GPU has 8.6"),
        (
            ["80-real", "90a-real"],
            (8, 9),
            "for compute capability 8.9 is for an older one.*ARCHITECTURES=89-real",
        ),
        (["80"], (9, 0), "for compute capability 9.0 is for an older one, without float8"),
    ],
)
def test_fp8(architectures, capability, reason):
    got = gpu.why_no_fp8(architectures, capability)
    assert got is None if reason is None else re.search(reason, got)


@pytest.mark.parametrize(
    ("capability", "message"), [((9, 0), None), ((8, 0), "this GPU has 8.0; use .*'int8'")]
)
def test_fp8_is_refused_before_anything_is_loaded(monkeypatch, capability, message):
    pretend(monkeypatch, capability=capability)
    monkeypatch.setattr(ops, "build_info", lambda: BUILD)
    checkpoint = SimpleNamespace(quantization=None, folder=Path("somewhere"))
    if message:
        with pytest.raises(ValueError, match=f"quantization='fp8': .*{message}"):
            options.choose_quantization("fp8", checkpoint, "cuda")
    else:
        assert options.choose_quantization("fp8", checkpoint, "cuda") == "fp8"
    assert options.choose_quantization("int8", checkpoint, "cuda") == "int8"


def test_auto_takes_the_cpu_for_a_model_without_kernels(monkeypatch):
    pretend(monkeypatch)
    monkeypatch.setattr(ops, "build_info", lambda: BUILD)
    assert options.choose_device("auto", QWEN3_4B) == options.choose_device("cuda", QWEN3_4B) == "cuda"
    assert options.choose_device("auto", replace(QWEN3_4B, head_dim=96)) == "cpu"
    with pytest.raises(ValueError, match=r"device='cuda': the model's head size is 96, .*; use device='cpu'"):
        options.choose_device("cuda", replace(QWEN3_4B, head_dim=96))


def test_dtypes():
    assert options.choose_dtype("auto", "cuda") == "bfloat16"
    assert options.choose_dtype("float16", "cuda") == "float16"
    with pytest.raises(ValueError, match="dtype='float16': the CPU has no kernels for it"):
        options.choose_dtype("float16", "cpu")


def test_weights():
    memory.check_weights_fit(QWEN3_4B, torch.bfloat16, 8 * GIB)
    memory.check_weights_fit(QWEN3_4B, torch.bfloat16, 5 * GIB, quantized=True)
    with pytest.raises(torch.OutOfMemoryError, match=r"need 4.5 GiB on the GPU, 4.0 GiB are free"):
        memory.check_weights_fit(QWEN3_4B, torch.bfloat16, 4 * GIB, quantized=True)
    with pytest.raises(torch.OutOfMemoryError, match=r"need 7.5 GiB on the GPU, 7.0 GiB are free"):
        memory.check_weights_fit(QWEN3_4B, torch.bfloat16, 7 * GIB)


@pytest.mark.parametrize("exactly", [True, False])
def test_cache_that_fits(exactly):
    assert memory.cache_tokens_on_gpu(QWEN3_4B, torch.bfloat16, 4096, exactly, GIB) == 4096


def test_cache_takes_what_there_is():
    tokens = memory.cache_tokens_on_gpu(QWEN3_4B, torch.bfloat16, 100_000, False, GIB)
    assert tokens % 64 == 0
    assert 0.75 * GIB < tokens * 147456 <= 0.8 * GIB


def test_cache_that_does_not_fit():
    with pytest.raises(
        torch.OutOfMemoryError, match=r"kv_cache_tokens=100000 needs 13.7 GiB .* room for 5824"
    ):
        memory.cache_tokens_on_gpu(QWEN3_4B, torch.bfloat16, 100_000, True, GIB)
    with pytest.raises(torch.OutOfMemoryError, match="a cache of 4096 needs"):
        memory.cache_tokens_on_gpu(QWEN3_4B, torch.bfloat16, 4096, False, 2**20)


@pytest.mark.parametrize(
    ("asked", "free", "tokens"), [(None, 100, 16 * 4096), (None, 1, 5824), (999, 100, 999)]
)
def test_cache_of_an_engine_on_a_gpu(monkeypatch, asked, free, tokens):
    """By default room for 16 sequences of 4096 positions, as far as the GPU's memory goes."""
    monkeypatch.setattr(gpu, "free_memory", lambda device: free * GIB)
    device = torch.device("cuda", 1)
    assert memory.cache_tokens(QWEN3_4B, 16, asked, torch.bfloat16, device) == tokens
