"""int8 engines: quantised while loading or before, and what a quantised checkpoint must look like."""

import json
import os
import shutil

import pytest
import torch
from checkpoints import config_dict, random_weights, write_ar_checkpoint, write_checkpoint
from op_cases import assert_close
from safetensors.torch import load_file, save_file

from edlm_engine import CheckpointError, Engine
from edlm_engine.checkpoints.folder import ASSETS
from edlm_engine.tools.quantize import quantize_checkpoint

PROMPT = [3, 14, 15, 92, 65]
PARAMS = {"max_new_tokens": 40, "threshold": 0.6, "ignore_eos": True}


@pytest.fixture(scope="module", params=["qwen3", "qwen2"])
def folder(request, tmp_path_factory):
    """Tied and untied."""
    return write_checkpoint(tmp_path_factory.mktemp(request.param) / "checkpoint", config_dict(request.param))


def generate(folder, **options):
    with Engine(folder, **options) as engine:
        return engine.generate(PROMPT, **PARAMS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_before_is_quantised_while_loading(folder, tmp_path, dtype):
    out = quantize_checkpoint(folder, tmp_path / "int8", shard_bytes=10_000)
    assert len(list(out.glob("*.safetensors"))) > 3
    assert not list(tmp_path.glob("*.partial"))
    before, while_loading = generate(out, dtype=dtype), generate(folder, dtype=dtype, quantization="int8")
    assert before.token_ids == while_loading.token_ids
    assert before.confidences == while_loading.confidences
    assert generate(out, dtype=dtype, quantization="int8").token_ids == before.token_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_is_near_the_model(dtype):
    """On the bundled model's examples: the same texts, and every confidence within 0.05."""
    prompts = [e["prompt"] for e in json.loads((ASSETS / "edlm-tiny" / "examples.json").read_text())]
    results = []
    for options in ({"dtype": "float32"}, {"dtype": dtype, "quantization": "int8"}):
        with Engine("edlm-tiny", **options) as engine:
            results.append(engine.generate(prompts, threshold=None, max_new_tokens=96))
    for exact, int8 in zip(*results, strict=True):
        assert exact.token_ids == int8.token_ids
        assert_close(torch.tensor(int8.confidences), torch.tensor(exact.confidences), 0, 0.05)


def test_files_and_tensors(folder, tmp_path):
    out = quantize_checkpoint(folder, tmp_path / "int8")
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    old, new = load_file(folder / "model.safetensors"), load_file(next(out.glob("*.safetensors")))
    down = "model.layers.1.mlp.down_proj.weight"
    assert new[down].dtype == torch.int8
    step = new[f"{down}_scale"][:, None]
    assert bool(((new[down] * step - old[down]).abs() <= step * 0.501).all())
    assert torch.equal(new["model.embed_tokens.weight"], old["model.embed_tokens.weight"])
    assert new["lm_head.weight"].dtype == torch.int8
    assert json.loads((out / "config.json").read_text())["quantization_config"] == {
        "quant_method": "edlm_int8"
    }


def test_autoregressive_checkpoints_too(tmp_path):
    base = write_ar_checkpoint(tmp_path / "base")
    out = quantize_checkpoint(base, tmp_path / "int8")
    assert generate(out).token_ids == generate(base, quantization="int8").token_ids


def test_fp8_checkpoint(folder, tmp_path):
    out = quantize_checkpoint(folder, tmp_path / "fp8", kind="fp8")
    old, new = load_file(folder / "model.safetensors"), load_file(next(out.glob("*.safetensors")))
    down = "model.layers.1.mlp.down_proj.weight"
    assert new[down].dtype == torch.float8_e4m3fn
    scale = new[f"{down}_scale"][:, None]
    assert_close(new[down].float() * scale, old[down], 2**-4, float(scale.max()) * 2**-9)
    assert json.loads((out / "config.json").read_text())["quantization_config"] == {
        "quant_method": "edlm_fp8"
    }


def test_fp8_on_the_cpu(folder, tmp_path):
    with pytest.raises(ValueError, match=r"quantization='fp8': the CPU has no kernels for it; use .*'int8'"):
        Engine(folder, device="cpu", quantization="fp8")
    out = quantize_checkpoint(folder, tmp_path / "fp8", kind="fp8")
    message = "config.json: the matrices are fp8: the CPU has no kernels for it; quantise the original"
    with pytest.raises(ValueError, match=message):
        Engine(out, device="cpu")
    message = "quantization='int8': the matrices of .*fp8 are fp8 already; leave it out, or"
    with pytest.raises(ValueError, match=message):
        Engine(out, device="cpu", quantization="int8")


def test_refused(folder, tmp_path):
    out = quantize_checkpoint(folder, tmp_path / "int8")
    with pytest.raises(CheckpointError, match="is quantised already"):
        quantize_checkpoint(out, tmp_path / "again")
    with pytest.raises(ValueError, match="is there already"):
        quantize_checkpoint(folder, out)
    with pytest.raises(ValueError, match="quantization must be one of int8, fp8, got 'int4'"):
        Engine(folder, quantization="int4")
    with pytest.raises(ValueError, match="must be one of int8, fp8, got 'int4'"):
        quantize_checkpoint(folder, tmp_path / "int4", kind="int4")


def test_bad_quantised_checkpoints(folder, tmp_path):
    out = quantize_checkpoint(folder, tmp_path / "int8")
    file = next(out.glob("*.safetensors"))
    tensors, name = load_file(file), "model.layers.0.mlp.up_proj.weight"
    config = json.loads((out / "config.json").read_text())

    def broken(message, changed, key=None):
        save_file(changed, file)
        if key:
            (out / "config.json").write_text(json.dumps(config | {"quantization_config": key}))
        with pytest.raises(CheckpointError, match=message):
            Engine(out)

    broken(f"'{name}' has dtype torch.float32; torch.int8 is needed", tensors | {name: tensors[name].float()})
    scale = f"{name}_scale"
    broken(f"'{scale}' has shape \\[95\\]", tensors | {scale: tensors[scale][:95].clone()})
    known = "known are those of edlm quantize: edlm_int8, edlm_fp8"
    broken(f"has the method 'gptq'; {known}", tensors, {"quant_method": "gptq"})
    shutil.rmtree(out)


def test_weights_that_are_not_finite(tmp_path):
    config = config_dict()
    weights = random_weights(config)
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][3, 4] = torch.nan
    folder = write_checkpoint(tmp_path / "checkpoint", config, weights)
    with pytest.raises(CheckpointError, match=f"tensor '{name}' holds NaN"):
        quantize_checkpoint(folder, tmp_path / "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_what_a_folder_holds_besides_its_weights(tmp_path):
    """A head beside a tied model and what can be computed: left out in every way of loading."""
    folder = write_checkpoint(tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    head = torch.randn(weights["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(1))
    more = {"lm_head.weight": head, "model.position_ids": torch.arange(512)}
    save_file(weights | more, folder / "model.safetensors")
    out = quantize_checkpoint(folder, tmp_path / "int8")
    while_loading, before = generate(folder, quantization="int8"), generate(out)
    assert before.token_ids == while_loading.token_ids
    assert before.confidences == while_loading.confidences
    save_file(weights, folder / "model.safetensors")
    assert generate(folder, quantization="int8").confidences == before.confidences


def test_only_files_of_the_folder_are_copied(tmp_path):
    folder, out = write_checkpoint(tmp_path / "checkpoint"), tmp_path / "int8"
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "README.md").write_text("about it")
    (folder / "about.md").symlink_to("README.md")
    (folder / "pipe.json").mkdir()
    os.mkfifo(folder / "pipe")
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf"):
        (folder / name).write_text("weights in another format")
    quantize_checkpoint(folder, out)
    copied = {path.name: path for path in out.iterdir()}
    assert not copied.keys() & {"notes.txt", "pipe", "pipe.json", "pytorch_model.bin", "model.gguf"}
    assert copied.keys() >= {"README.md", "about.md", "tokenizer.json", "config.json"}
    assert copied["about.md"].read_text() == "about it" and not copied["about.md"].is_symlink()


def test_a_folder_of_the_hubs_cache(tmp_path):
    """There every file is a link."""
    folder = write_checkpoint(tmp_path / "models--a--b" / "snapshots" / "0123")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    out = quantize_checkpoint(folder, tmp_path / "int8")
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_partial_folder_of_others_stays(tmp_path):
    folder, partial = write_checkpoint(tmp_path / "checkpoint"), tmp_path / "int8.partial"
    partial.mkdir()
    (partial / "precious").write_text("x")
    with pytest.raises(
        ValueError, match=r"int8\.partial: is there already, perhaps from a run that was ended"
    ):
        quantize_checkpoint(folder, tmp_path / "int8")
    assert (partial / "precious").read_text() == "x" and not (tmp_path / "int8").exists()


def test_layers_too_wide(tmp_path):
    config = config_dict(intermediate_size=70_000, num_hidden_layers=1)
    folder = write_checkpoint(tmp_path / "wide", config)
    with pytest.raises(
        ValueError, match="intermediate_size is 70000; quantised products sum up at most 66000"
    ):
        quantize_checkpoint(folder, tmp_path / "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]
