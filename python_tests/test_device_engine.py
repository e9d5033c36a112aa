"""The engine on every device there is gives the tokens that it gives on the CPU, in fp32."""

import pytest
import torch
from checkpoints import config_dict, random_weights, write_checkpoint

from edlm_engine import Engine, NumericalError, SamplingParams, ops
from edlm_engine.checkpoints.folder import bundled_models
from edlm_engine.device_led.device_loop import why_unsupported
from edlm_engine.tools.quantize import quantize_checkpoint

HAS_CUDA = ops.build_info()["cuda"] and torch.cuda.is_available()
no_cuda = pytest.mark.skipif(not HAS_CUDA, reason="needs a GPU and a build with CUDA kernels")
HEADS = {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPTS = [[5, 9, 2, 77, 31], list(range(1, 90)), [44] * 17, [3, 1, 4, 1, 5, 9, 2, 6]]
PARAMS = [
    SamplingParams(max_new_tokens=40, threshold=0.6),
    SamplingParams(max_new_tokens=33, threshold=None, steps_per_block=5),
    SamplingParams(max_new_tokens=24, threshold=0.9, temperature=0.8, seed=7),
    SamplingParams(max_new_tokens=24, threshold=0.5, temperature=1.2, top_k=20, top_p=0.9, seed=11),
]


no_loop = pytest.mark.skipif(bool(reason := why_unsupported()), reason=reason or "")
PLACES = [
    pytest.param(("cpu", "eager"), id="cpu-eager"),
    pytest.param(("cpu", "direct"), id="cpu-direct"),
    pytest.param(("cuda", "eager"), id="cuda-eager", marks=no_cuda),
    pytest.param(("cuda", "graph"), id="cuda-graph", marks=no_cuda),
    pytest.param(("cuda", "device"), id="cuda-device", marks=[no_cuda, no_loop]),
]


@pytest.fixture(params=PLACES)
def place(request) -> dict:
    """Options of an engine: where it computes, and who leads its steps."""
    return dict(zip(("device", "stepping"), request.param, strict=True))


@pytest.fixture(scope="module", params=["qwen3", "qwen2"])
def checkpoint(request, tmp_path_factory):
    config = config_dict(request.param, **HEADS)
    return write_checkpoint(tmp_path_factory.mktemp("device") / request.param, config)


@pytest.mark.parametrize("prefill", ["block_causal", "bidirectional", "causal"])
def test_same_tokens_as_alone_on_the_cpu(checkpoint, place, prefill):
    options = {"dtype": "float32", "prefill": prefill}
    with Engine(checkpoint, device="cpu", stepping="eager", max_batch_size=1, **options) as engine:
        want = [engine.generate(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
    with Engine(checkpoint, **place, **options) as engine:
        got = engine.generate(PROMPTS, PARAMS)
        assert (
            engine.generate(PROMPTS[0], PARAMS[0]).token_ids == want[0].token_ids
        )  # and alone, after others
    for one, other in zip(got, want, strict=True):
        assert one.token_ids == other.token_ids
        assert one.commit_steps == other.commit_steps
        assert one.confidences == pytest.approx(other.confidences, rel=1e-3)


@pytest.mark.skipif("edlm-tiny" not in bundled_models(), reason="edlm-tiny is not in the package")
def test_bundled_model(place):
    prompts = ["What is 17 + 25?\n", "Reverse the list: 4 8 15\n", "Sort: pear, apple\n"]
    results = []
    for options in ({"device": "cpu", "stepping": "eager"}, place):
        with Engine("edlm-tiny", dtype="float32", **options) as engine:
            results.append([r.token_ids for r in engine.generate(prompts, max_new_tokens=48)])
    assert results[0] == results[1]


def test_nan_weights_are_reported(tmp_path, place):
    config = config_dict(**HEADS)
    weights = random_weights(config)
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = torch.nan
    folder = write_checkpoint(tmp_path / "nan", config, weights)
    with Engine(folder, **place) as engine, pytest.raises(NumericalError, match="NaN or infinite"):
        engine.generate(PROMPTS[0], max_new_tokens=8)


@no_cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_types_run(checkpoint, dtype):
    with Engine(checkpoint, device="cuda", dtype=dtype) as engine:
        results = engine.generate(PROMPTS, PARAMS)
    assert [len(r.token_ids) > 0 for r in results] == [True] * 4


@no_cuda
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_engines_run(checkpoint, tmp_path, kind):
    """Quantised before or while loading: the same tokens. (Not those of the CPU to the last: an activation's
    last bit may move a byte.)"""
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs a GPU of compute capability 8.9 or later")
    results = []
    for folder in (checkpoint, quantize_checkpoint(checkpoint, tmp_path / kind, kind=kind)):
        with Engine(folder, device="cuda", quantization=kind) as engine:
            results.append([r.token_ids for r in engine.generate(PROMPTS, PARAMS)])
    assert results[0] == results[1]
    assert all(results[0])


@no_cuda
def test_head_size_without_a_kernel(tmp_path):
    folder = write_checkpoint(tmp_path / "small", config_dict(head_dim=16))
    with pytest.raises(ValueError, match="head size is 16, there are kernels for 64 and 128"):
        Engine(folder, device="cuda")


@no_cuda
def test_cache_larger_than_the_gpu(checkpoint):
    with pytest.raises(torch.OutOfMemoryError, match=r"kv_cache_tokens=1000000000 needs .* GiB on the GPU"):
        Engine(checkpoint, device="cuda", kv_cache_tokens=10**9)
