"""Folders that a stranger may have made: refused at once, by file and key, before anything large is made."""

import json
import logging
import os
import resource

import pytest
import torch
from checkpoints import config_dict, random_weights, write_ar_checkpoint, write_checkpoint
from safetensors.torch import load_file, save_file

from edlm_engine import CheckpointError, Engine
from edlm_engine.checkpoints.folder import MAX_JSON_BYTES, first_line, read_json, resolve
from edlm_engine.convert.checkpoint import load_decoder
from edlm_engine.errors import shown

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
ESCAPE = "\x1b[2J"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint")


def refuse(model, *parts: str, **options):
    """Engine and trainer refuse it with one short printable message that holds all `parts`."""
    with pytest.raises(CheckpointError) as caught:
        Engine(model, **options)
    said = str(caught.value)
    assert all(part in said for part in parts), said
    assert said.isprintable() and len(said) < 700
    if not options:
        with pytest.raises(CheckpointError) as caught:
            load_decoder(resolve(model))
        assert str(caught.value) == said


def change(folder, **changes):
    (folder / "config.json").write_text(json.dumps(config_dict() | changes))


# files


@pytest.mark.parametrize("name", ("config.json", "generation_config.json", MODEL, INDEX))
@pytest.mark.parametrize("kind", ("folder", "pipe", "device"))
def test_what_is_no_file(folder, name, kind):
    if name == INDEX:
        (folder / MODEL).rename(folder / "shard.safetensors")
    (folder / name).unlink(missing_ok=True)
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    refuse(folder, f"{folder / name}: must be a file, and is a folder, a pipe or a device")


def test_a_file_without_end(folder):
    with (folder / "generation_config.json").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: it takes no place
    refuse(folder, f"{folder / 'generation_config.json'}: is larger than {MAX_JSON_BYTES >> 20} MiB")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "no valid JSON: nested too deeply"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "no valid JSON: nested too deeply"),
        ('{"eos_token_id": ' + "1" * 5000 + "}", "no valid JSON: Exceeds the limit"),
        ('{"eos_token_id": 1' + "0" * 400 + "}", "key 'eos_token_id' holds 1000"),
        ("\ufeff{}", "no valid JSON: Unexpected UTF-8 BOM"),
        ("null", "must hold a dict, holds a NoneType"),
    ],
    ids=range(6),
)
def test_json_of_every_kind(folder, text, message):
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    refuse(folder, f"{folder / 'generation_config.json'}: ", message)


@pytest.mark.parametrize(
    "file", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", None, 7, ["x"], {},
             ESCAPE, "a\0b", "\ud800", "x" * 5000],
)  # fmt: skip
def test_an_index_stays_in_its_folder(folder, file):
    weights = load_file(folder / MODEL)
    (folder / MODEL).rename(folder.parent / "other.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights, file)}))
    refuse(folder, f"{folder / INDEX}: key 'weight_map' has {shown(file)} for ", "the name of a file in the")


@pytest.mark.parametrize("index", ({}, {"weight_map": {}}, {"weight_map": None}, {"weight_map": "x"}))
def test_an_index_without_a_map(folder, index):
    (folder / MODEL).unlink()
    (folder / INDEX).write_text(json.dumps(index))
    refuse(folder, f"{folder / INDEX}: key 'weight_map' is missing or holds no object")


def test_names_of_tensors_are_escaped_and_cut(folder):
    name = f"model.{ESCAPE}" + "x" * 100_000
    save_file(load_file(folder / MODEL) | {name: torch.ones(1)}, folder / MODEL)
    refuse(folder, "tensor 'model.\\x1b[2Jxxx", "has no place in the model")


def test_what_the_files_hold_instead(folder):
    weights = {name.replace("model.", "transformer."): t for name, t in load_file(folder / MODEL).items()}
    save_file(weights, folder / MODEL)
    refuse(folder, "names like 'transformer.")
    (folder / MODEL).rename(folder / "pytorch_model.bin")
    refuse(folder, "no .safetensors file, and 'pytorch_model.bin' is of a format that is not read here")


def test_weights_in_a_format_of_others_lie_beside(folder):
    """Mistral's repositories hold all weights twice."""
    with Engine(folder, dtype="float32") as engine:
        expected = engine.generate([1, 2, 3], max_new_tokens=8).token_ids
    save_file({"tok_embeddings.weight": torch.ones(1)}, folder / "consolidated.safetensors")
    (folder / MODEL).rename(folder / "model-00001-of-00001.safetensors")
    names = load_file(folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    weight_map.pop("model.norm.weight")  # what a shard holds beyond its index counts, too
    for index in (True, False):
        (folder / INDEX).unlink(missing_ok=True)
        if index:
            (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with Engine(folder, dtype="float32") as engine:
            assert engine.generate([1, 2, 3], max_new_tokens=8).token_ids == expected


def test_adapters_are_mentioned(folder, caplog):
    with caplog.at_level(logging.WARNING, "edlm_engine"):
        Engine(folder).close()
        assert not caplog.records
        (folder / "adapter_config.json").write_text("{}")
        Engine(folder).close()
    said = "an adapter lies beside the model and is left out; merge it to use it"
    assert caplog.messages == [f"{folder / 'adapter_config.json'}: {said}"]
    (folder / "config.json").unlink()
    refuse(folder, "config.json: file is missing; adapter_config.json is of an adapter: merge it")


def test_a_head_beside_a_tied_model_is_mentioned(folder, caplog):
    save_file(load_file(folder / MODEL) | {"lm_head.weight": torch.ones(128, 64)}, folder / MODEL)
    with caplog.at_level(logging.WARNING, "edlm_engine"):
        Engine(folder).close()
    assert caplog.messages == [
        f"{folder / MODEL}: 'lm_head.weight' is left out: config.json says that the head is the embedding"
    ]


# values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": [{}], "model_type": [1]}, "key 'model_type' must be of type str, got [1]"),
        ({"architectures": [{}]}, "architectures [{}], model_type 'edlm': no such family here"),
        ({"architectures": [ESCAPE * 10**6]}, "architectures ['\\x1b[2J"),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "llama"}, "name two families"),
        ({"quantization_config": {"quant_method": []}}, "'quantization_config' has the method []; known are"),
        ({"quantization_config": {"load_in_4bit": True}}, "has the method 'bitsandbytes'"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [1]}}, "the method 'fp8'"),
        ({"quantization_config": "x" * 10**6}, "key 'quantization_config' must be of type dict, got 'xxx"),
        ({"compression_config": {"format": "x"}}, "key 'compression_config': the weights are quantised by"),
        ({"quantization": {"bits": 4}}, "key 'quantization': the weights are quantised by MLX"),
        ({"hidden_size": 2**40}, "key 'hidden_size' must be within ±2147483647, got 1099511627776"),
        ({"hidden_size": 2**30}, "key 'hidden_size' must be at most 1048576"),
        ({"hidden_size": -64}, "key 'hidden_size' must be at least 1, got -64"),
        ({"hidden_size": 1024}, "'model.embed_tokens.weight' has shape [128, 64]; config.json asks for"),
        ({"intermediate_size": 10**8}, "key 'intermediate_size' must be at most 4194304"),
        ({"vocab_size": 2**31 - 1}, "'model.embed_tokens.weight' has shape [128, 64]; config.json asks for"),
        ({"num_hidden_layers": 2**40}, "key 'num_hidden_layers' must be within"),
        ({"num_hidden_layers": 60_000}, "'num_hidden_layers' is 60000, but the files lack the last layer's"),
        ({"num_attention_heads": 10**6}, "key 'num_attention_heads' must be at most 65536"),
        ({"head_dim": 10**6}, "key 'head_dim' must be at most 4096"),
        ({"head_dim": 17}, "head_dim 17 is no multiple of 16"),
        ({"max_position_embeddings": 2**40}, "key 'max_position_embeddings' must be within"),
        ({"block_size": 30_000_000}, "key 'block_size' must be at most 16384"),
        ({"mask_token_id": 10**400}, "key 'mask_token_id' must be within ±2147483647, got 1000"),
        ({"eos_token_id": 2**31}, "key 'eos_token_id' holds 2147483648, which is outside the vocabulary"),
        ({"eos_token_id": [3, -1]}, "key 'eos_token_id' holds -1, which is outside the vocabulary [0, 128)"),
        ({"eos_token_id": 128}, "key 'eos_token_id' holds 128, which is outside the vocabulary [0, 128)"),
        ({"rms_norm_eps": 0}, "key 'rms_norm_eps' must be a positive number, got 0"),
        ({"rms_norm_eps": 1e-300}, "must be a positive number, got 1e-300, which float32 cannot hold"),
        ({"rope_theta": 10**400}, "key 'rope_theta' must be a positive number, got inf"),
        ({"rope_theta": -1.0}, "key 'rope_theta' must be a positive number, got -1.0"),
        ({"rope_scaling": {"rope_type": [], "factor": 2.0}}, "key 'rope_type' must be of type str, got []"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "no finite frequencies"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "key 'factor' must be a pos"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types holds 'sliding_attention'"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else "",
)  # fmt: skip
def test_values(folder, changes, message):
    change(folder, **changes)
    refuse(folder, message)


def test_yarn_that_stretches_beyond_all_positions(folder):
    change(folder, rope_scaling={"rope_type": "yarn", "factor": 1e38})
    with Engine(folder, dtype="float32") as engine:
        assert engine.config.max_positions == 2**31 - 1
        assert len(engine.generate([1], max_new_tokens=4, ignore_eos=True).token_ids) == 4


def test_memory_grows_with_the_cache_not_with_the_positions(folder):
    with Engine(folder, dtype="float32", kv_cache_tokens=300) as engine:
        expected = engine.generate([1, 2, 3], max_new_tokens=200, ignore_eos=True).token_ids
    change(folder, max_position_embeddings=2**31 - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Engine(folder, dtype="float32", kv_cache_tokens=300) as engine:
        assert engine.generate([1, 2, 3], max_new_tokens=200, ignore_eos=True).token_ids == expected
    Engine(folder, dtype="float32").close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_dummy_weights_larger_than_the_machine(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_dict(hidden_size=2**20, vocab_size=2**30)))
    with pytest.raises(
        torch.OutOfMemoryError, match=r"the weights need .* GiB, .* GiB are free; take a smal"
    ):
        Engine(tmp_path, load_format="dummy")


def test_a_cache_larger_than_the_machine(folder):
    with pytest.raises(torch.OutOfMemoryError, match=r"kv_cache_tokens=2147483647 needs .* there is room"):
        Engine(folder, kv_cache_tokens=2**31 - 1)


def test_layers_too_wide_to_quantise(tmp_path):
    config = config_dict(intermediate_size=70_000, num_hidden_layers=1)
    folder = write_checkpoint(tmp_path / "wide", config, random_weights(config))
    with pytest.raises(
        ValueError, match="intermediate_size is 70000; quantised products sum up at most 66000"
    ):
        Engine(folder, quantization="int8")
    Engine(folder).close()


# names


@pytest.mark.parametrize("model", (None, 7, b"edlm-tiny", ["edlm-tiny"], {}))
def test_what_is_no_name(model):
    with pytest.raises(TypeError, match="model must be a folder, a bundled model's name or a hub id, got "):
        Engine(model)


@pytest.mark.parametrize("model", ("~nobody/x", "a\0b", "x" * 10_000_000, ESCAPE, "a" * 200 + "/b", "\ud800"))
def test_names_of_nothing(model):
    with pytest.raises(CheckpointError) as caught:
        Engine(model)
    said = str(caught.value)
    assert "is no folder, no bundled model (edlm-tiny, edlm-tiny-ar) and no hub id" in said
    assert said.isprintable() and len(said) < 300


def test_no_name_at_all():
    with pytest.raises(CheckpointError, match=r"^model is empty; give a folder, a bundled model's name or"):
        Engine("")


def test_mistral_without_a_number_of_kv_heads(tmp_path):
    """null means as many as heads, in every family."""
    folder = write_ar_checkpoint(tmp_path / "mistral", "qwen3", num_key_value_heads=4, sliding_window=None)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
    weights = {name: t for name, t in load_file(folder / MODEL).items() if "_norm.weight" not in name}
    save_file(weights, folder / MODEL)
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": None}))
    with Engine(folder) as engine:
        assert engine.config.num_kv_heads == 4


def test_shown():
    assert shown("a") == "'a'" and shown([1, None]) == "[1, None]"
    assert len(shown("x" * 10**7)) <= 100 and len(shown([["x" * 10**4] * 100] * 100)) < 4000
    assert shown(10**5000) == "a very long int" and shown(ESCAPE) == "'\\x1b[2J'"
    assert first_line(ValueError(f"a{ESCAPE}\nb")) == "a\\x1b[2J"


def test_numbers_that_no_json_has(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": NaN, "other": Infinity}')
    refuse(folder, "key 'eos_token_id' must be an id or a list of ids, got nan")
    assert read_json(folder / "generation_config.json")["other"] == float("inf")
