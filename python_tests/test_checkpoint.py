"""Checkpoint folders: what loads, and what the message says when one does not."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from checkpoints import MASK, config_dict, random_weights, write_ar_checkpoint, write_checkpoint
from safetensors.torch import load_file, save_file

from edlm_engine import CheckpointError, Engine
from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.checkpoints.dummy import DummyTensors
from edlm_engine.tools.quantize import quantize_checkpoint

PROMPT = [5, 6, 7, 8, 9]
MODEL = "model.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint")


def generate(folder, **options) -> list[int]:
    with Engine(folder, dtype="float32", **options) as engine:
        return engine.generate(PROMPT, max_new_tokens=20).token_ids


def refuse(folder, *parts: str, **options):
    """Engine(folder) fails with a CheckpointError that holds all `parts`."""
    with pytest.raises(CheckpointError) as caught:
        Engine(folder, **options)
    for part in parts:
        assert part in str(caught.value)


def change_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(config_dict(**changes)))


def change_weights(folder, change):
    weights = load_file(folder / MODEL)
    change(weights)
    save_file(weights, folder / MODEL)


def write_shards(folder) -> dict[str, str]:
    """Split the weights over two files with an index; returns its weight map."""
    weights = load_file(folder / MODEL)
    (folder / MODEL).unlink()
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: files[i % 2] for i, name in enumerate(sorted(weights))}
    for file in files:
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, folder / file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_no_weights(folder):
    (folder / MODEL).unlink()
    refuse(folder, str(folder), "no .safetensors file")


def test_model_safetensors_wins_over_what_lies_beside_it(folder):
    expected = generate(folder)
    flipped = {name: tensor.flip(0) for name, tensor in load_file(folder / MODEL).items()}
    save_file(flipped, folder / "a_backup.safetensors")
    save_file(flipped, folder / "model-00001-of-00001.safetensors")
    write_index(folder, dict.fromkeys(flipped, "model-00001-of-00001.safetensors"))
    (folder / "._model.safetensors").write_bytes(b"Mac OS X        ")
    assert generate(folder) == expected
    (folder / MODEL).rename(folder / "weights.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    refuse(folder, "is in a_backup.safetensors, too; remove one of them")
    for name in ("a_backup", "model-00001-of-00001"):
        (folder / f"{name}.safetensors").unlink()
    assert generate(folder) == expected


@pytest.mark.parametrize(
    "name",
    ["lm_head.bias", "model.layers.0.self_attn.q_proj.weight_scale", "model.layers.2.mlp.down_proj.weight",
     "model.layers.1.mlp.down_proj.bias"],
)  # fmt: skip
def test_a_tensor_that_has_no_place(folder, name):
    change_weights(folder, lambda weights: weights.update({name: torch.ones(64)}))
    refuse(folder, f"{folder / MODEL}: tensor '{name}' has no place in the model of config.json")


def test_tensors_that_are_no_weights(folder):
    expected = generate(folder)
    none = {
        "lm_head.weight": torch.ones(3, 3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.position_ids": torch.arange(512), "model.layers.0.self_attn.bias": torch.ones(4, 4).bool(),
    }  # fmt: skip
    change_weights(folder, lambda weights: weights.update(none))
    assert generate(folder) == expected


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json", "quant_config.json"])
def test_weights_that_others_quantised(folder, name):
    (folder / name).write_text("{}")
    refuse(folder, f"{folder / name}: the weights are quantised by", "take the original ones")


def test_float8_without_a_word_in_the_config(folder):
    change_weights(folder, lambda weights: weights.update({DOWN: weights[DOWN].to(torch.float8_e4m3fn)}))
    refuse(
        folder, f"{folder / MODEL}: '{DOWN}' is torch.float8_e4m3fn, but config.json names no quantisation"
    )


def test_files_may_change_under_an_engine(folder):
    with Engine(folder, dtype="float32") as engine:
        expected = engine.generate(PROMPT, max_new_tokens=20).token_ids
        (folder / MODEL).write_bytes(b"")  # the same inode: a mapping would end the process
        assert engine.generate(PROMPT, max_new_tokens=20).token_ids == expected


def test_no_config(folder):
    (folder / "config.json").unlink()
    refuse(folder, f"{folder / 'config.json'}: file is missing")


@pytest.mark.parametrize("keep", (0.9, 0.0))
def test_truncated_file(folder, keep):
    data = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(data[: int(keep * len(data))])
    refuse(folder, f"{folder / MODEL}: truncated or no safetensors file")


def test_truncated_shard(folder):
    shard = folder / write_shards(folder)[DOWN]
    shard.write_bytes(shard.read_bytes()[:-100])
    refuse(folder, f"{shard}: truncated or no safetensors file")


def test_missing_tensor(folder):
    change_weights(folder, lambda weights: weights.pop(DOWN))
    refuse(folder, str(folder), f"tensor '{DOWN}' of shape [64, 96] is missing")


def test_wrong_shape(folder):
    change_weights(folder, lambda weights: weights.update({DOWN: torch.zeros(96, 64)}))
    refuse(folder, f"{folder / MODEL}: '{DOWN}' has shape [96, 64]; config.json asks for [64, 96]")


def test_integer_tensor(folder):
    change_weights(folder, lambda weights: weights.update({DOWN: torch.zeros(64, 96, dtype=torch.int8)}))
    refuse(folder, f"{folder / MODEL}: '{DOWN}' has dtype torch.int8; a float type is needed")


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_any_float_type_is_converted(tmp_path, dtype):
    exact = {name: t.bfloat16().half().float() for name, t in random_weights(config_dict()).items()}
    expected = generate(write_checkpoint(tmp_path / "float32", weights=exact))
    stored = {name: t.to(dtype) for name, t in exact.items()}
    assert all(torch.equal(stored[name].float(), exact[name]) for name in exact)
    assert generate(write_checkpoint(tmp_path / "other", weights=stored)) == expected


def test_two_shards_load_like_one_file(folder):
    expected = generate(folder)
    assert len(set(write_shards(folder).values())) == 2
    assert generate(folder) == expected


def test_index_lists_a_missing_shard(folder):
    shard = folder / write_shards(folder)[DOWN]
    shard.unlink()
    refuse(folder, f"{shard}: file is missing; model.safetensors.index.json lists it")


def test_index_names_the_wrong_shard(folder):
    weight_map = write_shards(folder)
    other = next(file for file in weight_map.values() if file != weight_map[DOWN])
    write_index(folder, {**weight_map, DOWN: other})
    refuse(folder, f"{folder / other}: has no tensor '{DOWN}', which model.safetensors.index.json says is")


@pytest.mark.parametrize("weight_map", (None, ["a"], "x"))
def test_index_without_a_weight_map(folder, weight_map):
    (folder / MODEL).unlink()
    write_index(folder, weight_map)
    refuse(folder, "model.safetensors.index.json: key 'weight_map' is missing")


@pytest.mark.parametrize("shape", ("qwen2", "qwen3"))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("stored", ("float", "int8"))
def test_an_engine_has_no_file_mapped(tmp_path, shape, dtype, stored):
    """A file that shrinks under a mapping ends the process that reads it. Weights that are stored as the
    engine wants them need no conversion, which would copy them."""
    config = config_dict(shape)
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in random_weights(config).items()}
    folder = write_checkpoint(tmp_path / "checkpoint", config, weights)
    if stored == "int8":
        folder = quantize_checkpoint(folder, tmp_path / "int8")
    with Engine(folder, dtype=dtype):
        assert str(folder) not in Path(f"/proc/{os.getpid()}/maps").read_text()


@pytest.mark.parametrize("text", ('{"a": ', "\xff\xfe", ""))
def test_broken_json(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refuse(folder, f"{folder / 'config.json'}: no valid ")


def test_json_that_is_no_object(folder):
    (folder / "generation_config.json").write_text("[1]")
    refuse(folder, f"{folder / 'generation_config.json'}: must hold a dict, holds a list")


def test_nowhere_to_be_found(tmp_path):
    refuse(tmp_path / "x" / "y" / "z", "is no folder, no bundled model", "no hub id (organisation/name)")


def test_a_file_is_no_folder(folder):
    refuse(folder / MODEL, "is a file; the engine takes the folder that holds it")


@pytest.mark.parametrize(
    ("hub_id", "message"),
    [
        ("nobody/nothing", "the hub cannot be reached and its cache here does not hold the model"),
        ("a..b/--c", "no hub id"),
    ],
)
def test_hub_offline(monkeypatch, tmp_path, hub_id, message):
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError, match=f"{re.escape(hub_id)}: no folder here.*{message}") as caught:
        Engine(hub_id)
    assert "\n" not in str(caught.value)


def test_generation_config_adds_eos_ids(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [90, 126]}))
    with Engine(folder) as engine:
        assert engine.decoding.eos_token_ids == (126, 90)


@pytest.mark.parametrize("shape", ("qwen2", "qwen3"))
def test_switches_come_from_the_tensors(tmp_path, shape):
    """Efficient-DLM's config does not say which of the two it is."""
    config = config_dict(shape)
    hidden = {**config, "qk_norm": None, "attention_bias": None, "tie_word_embeddings": None}
    folder = write_checkpoint(tmp_path / shape, {k: v for k, v in hidden.items() if v is not None},
                              random_weights(config))  # fmt: skip
    model = Checkpoint(folder).model
    assert (model.qkv_bias, model.qk_norm, model.tied_head) == (
        (True, False, False) if shape == "qwen2" else (False, True, True)
    )
    assert generate(folder) == generate(write_checkpoint(tmp_path / "explicit", config))


@pytest.mark.parametrize("shape", ("qwen2", "qwen3"))
def test_autoregressive_switches(tmp_path, shape):
    checkpoint = Checkpoint(write_ar_checkpoint(tmp_path / shape, shape))
    assert checkpoint.decoding.autoregressive and checkpoint.decoding.block_length == 1
    assert (checkpoint.model.qkv_bias, checkpoint.model.qk_norm) == (shape == "qwen2", shape == "qwen3")


@pytest.mark.parametrize("architecture", ("EfficientDLM", "Qwen3ForCausalLM"))
def test_dummy_weights_need_a_config_alone(tmp_path, architecture):
    change_config(tmp_path, architectures=[architecture])
    with Engine(tmp_path, load_format="dummy") as engine:
        result = engine.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert len(result.token_ids) == 20 and result.text == ""
    refuse(tmp_path, "load_format='dummy' needs none")


def test_missing_mask_id_says_how_to_give_it(folder):
    expected = generate(folder)
    change_config(folder, mask_token_id=None)
    refuse(folder, "config.json: key 'mask_token_id' is missing; give Engine(..., mask_token_id=ID)")
    assert generate(folder, mask_token_id=MASK) == expected


@pytest.mark.parametrize("mask", (128, -1, 1.5, True))
def test_mask_id_outside_the_vocabulary(folder, mask):
    refuse(folder, f"mask_token_id {mask!r} is outside the vocabulary [0, 128)", mask_token_id=mask)


@pytest.mark.parametrize("option", ("block_length", "mask_token_id"))
def test_options_that_an_autoregressive_checkpoint_lacks(tmp_path, option):
    folder = write_ar_checkpoint(tmp_path / "ar")
    with pytest.raises(ValueError, match=f"{option}: .* is an autoregressive checkpoint and has none"):
        Engine(folder, **{option: 4})


def test_dummy_weights_are_made_where_they_are_wanted():
    """On a GPU; "meta" stands in for it. Elsewhere they have the same values."""
    tensors = DummyTensors(device="meta")
    names = ("a.weight", "norm.weight", "q_proj.bias")
    made = [tensors.tensor(*arguments) for arguments in zip(names, ((1001, 1500), (64,), (64,)), strict=True)]
    assert {tensor.device.type for tensor in made} == {"meta"}
    one, other = (DummyTensors().tensor("a.weight", (1001, 1500)).float() for _ in range(2))
    assert torch.equal(one, other) and not torch.equal(one[0], one[1])
    assert one.std() == pytest.approx(0.02, rel=0.01)
