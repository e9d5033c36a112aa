"""The trainable decoder against transformers, and checkpoint folders."""

import json
import os
from pathlib import Path

import pytest
import torch
from convert_tools import tiny_decoder
from safetensors.torch import load_file, save_file

from edlm_engine import CheckpointError
from edlm_engine.convert.checkpoint import load_decoder, save_checkpoint
from edlm_engine.convert.files import TOKENIZER_FILES
from edlm_engine.convert.masking import training_mask
from edlm_engine.convert.model import Decoder
from edlm_engine.models.families import read_config
from edlm_engine.tools.quantize import quantize_checkpoint

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}


def decoder(**changes) -> Decoder:
    config = {**SHAPE, "architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "tie_word_embeddings": True}
    return Decoder(read_config({**config, **changes}, "config.json")[0])


def test_a_full_mask_changes_what_rows_see():
    model = decoder().initialise(torch.Generator().manual_seed(0))
    ids = torch.arange(8)[None]
    causal = model(ids, None, torch.ones(8, 8, dtype=torch.bool).tril())
    assert torch.allclose(model(ids), causal, atol=1e-6)
    assert not torch.allclose(model(ids, None, torch.ones(8, 8, dtype=torch.bool)), causal, atol=1e-4)


def test_views_see_what_one_mask_over_all_rows_says():
    """[view | view | view | clean]: each view sees itself and the clean rows, and no other view."""
    model = tiny_decoder(torch.float64)
    blocks = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 2]])
    slots = torch.tensor([[3, 4, 5, 6], [2, 3, -1, -1]])
    own, clean = training_mask(blocks, slots)
    everything = torch.zeros(2, 19, 19, dtype=torch.bool)
    for begin in (0, 4, 8):
        everything[:, begin : begin + 4, begin : begin + 4] = own[..., :4]
        everything[:, begin : begin + 4, 12:] = own[..., 4:]
    everything[:, 12:, 12:] = clean
    ids = torch.randint(10, (2, 19), generator=torch.Generator().manual_seed(0))
    positions = torch.cat((slots.clamp_min(0).repeat(1, 3), torch.arange(7).expand(2, -1)), 1)
    found, expected = (model(ids, positions, allow) for allow in ((own, clean), everything))
    assert torch.allclose(found, expected) and not torch.allclose(found, model(ids, positions))


@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize(("token", "rows"), [(11, 12), (10, 11), (9, 10), (4, 10)])
def test_a_new_token_is_the_mean_of_those_before_it(tied, token, rows):
    """Its row may be there already; rows that are missing before it are like its own."""
    model = tiny_decoder(tie_word_embeddings=tied)
    layers = [model.model.embed_tokens] + ([] if tied else [model.lm_head])
    before = [layer.weight.detach().clone() for layer in layers]
    model.add_token(token)
    for layer, old in zip(layers, before, strict=True):
        mean = old[:token].mean(0)
        expected = torch.cat((old, mean.expand(rows - 10, -1)))
        expected[token] = mean
        assert torch.equal(layer.weight, expected) and layer.weight.requires_grad and layer.weight.is_leaf
    assert model.config.vocab_size == model.model.embed_tokens.num_embeddings == rows
    assert tied or model.lm_head.out_features == rows
    assert model(torch.tensor([[token]])).shape == (1, 1, rows)


@pytest.fixture
def folder(tmp_path):
    config = {**SHAPE, "architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "tie_word_embeddings": True}
    model = decoder().initialise(torch.Generator().manual_seed(0))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    save_checkpoint(tmp_path / "model", model, config, tmp_path / "source", torch.float32)
    return tmp_path / "model", model


def test_round_trip_is_exact_and_leaves_no_temporary_files(folder):
    path, model = folder
    loaded, config = load_decoder(path)
    assert config["torch_dtype"] == "float32"
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_bf16_is_the_default_and_sharded_folders_load(folder, tmp_path):
    path, model = folder
    config = json.loads((path / "config.json").read_text())
    save_checkpoint(tmp_path / "half", model, config, path)
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, tmp_path / "half" / shard)
    (tmp_path / "half" / "model.safetensors").unlink()
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (tmp_path / "half" / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded, _ = load_decoder(tmp_path / "half")
    assert torch.equal(loaded.state_dict()[names[3]], tensors[names[3]].float())


def edit_tensors(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def test_bad_folders_are_named_precisely(folder, tmp_path):
    path, _ = folder
    with pytest.raises(CheckpointError, match=r"nowhere/config\.json: file is missing"):
        load_decoder(tmp_path / "nowhere")
    edit_tensors(path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' of shape \[32\] is missing"):
        load_decoder(path)
    edit_tensors(path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(5)}))
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' has shape \[5\]; .* \[32\]"):
        load_decoder(path)
    edit_tensors(
        path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32), "extra": torch.ones(5)})
    )
    with pytest.raises(CheckpointError, match="tensor 'extra' has no place in the model"):
        load_decoder(path)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        load_decoder(path)


def test_quantised_weights_cannot_be_trained(folder, tmp_path):
    quantized = quantize_checkpoint(folder[0], tmp_path / "int8")
    with pytest.raises(CheckpointError, match="is quantised to int8; training needs floats"):
        load_decoder(quantized)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 2**20, "vocab_size": 2**24}, "has shape"),
        ({"num_hidden_layers": 2**40}, r"model\.layers\.2\.|'num_hidden_layers' must be within"),
        ({"num_hidden_layers": 3}, r"(tensor|lack) .*'model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"'model\.layers\.1\..*' and \d+ more has no place"),
        ({"vocab_size": 2**62}, r"config\.json: key 'vocab_size' must be"),
        ({"intermediate_size": 2**70}, r"config\.json"),
    ],
)
def test_an_absurd_shape_is_refused_before_anything_is_built(folder, changes, message):
    path, _ = folder
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        load_decoder(path)


def test_the_tensors_asked_for_are_the_decoders():
    for changes in ({}, {"num_hidden_layers": 12, "tie_word_embeddings": False, "attention_bias": True}):
        model = decoder(**changes)
        shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        assert dict(Decoder.tensor_shapes(model.config)) == shapes


def test_a_tied_model_may_have_a_head_of_its_own_in_the_file(folder):
    path, model = folder
    edit_tensors(path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(40, 32)}))
    loaded, _ = load_decoder(path)
    assert loaded.head_weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.head_weight, model.head_weight)


def test_tensors_may_have_other_names(folder):
    path, model = folder
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["EfficientDLM"], "model_type": "edlm"}
    (path / "config.json").write_text(json.dumps(config))

    def rename(tensors):
        for name in list(tensors):
            tensors[name.replace("model.", "encoder.", 1)] = tensors.pop(name)

    edit_tensors(path, rename)
    loaded, _ = load_decoder(path)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_a_silent_config_has_the_familys_defaults(folder):
    path, _ = folder
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "rms_norm_eps"}))
    loaded, _ = load_decoder(path)
    assert loaded.config.rms_norm_eps == loaded.model.norm.eps == 1e-6
    (path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert load_decoder(path)[0].model.layers[0].input_layernorm.eps == 1e-3


def test_weights_are_fp32_whatever_the_default_is(folder):
    torch.set_default_dtype(torch.float64)
    try:
        loaded, _ = load_decoder(folder[0])
    finally:
        torch.set_default_dtype(torch.float32)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}


def test_fresh_weights_are_narrow_and_narrower_where_they_add_up():
    model = decoder(hidden_size=256, intermediate_size=512, attention_bias=True, vocab_size=400)
    model.initialise(torch.Generator().manual_seed(0))
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert weight.std().item() == pytest.approx(
                0.01 if adds else 0.02, rel=0.05
            )  # 2·2 layers: a half
            assert abs(weight.mean().item()) < 1e-3
        else:
            assert (weight == (0 if name.endswith("bias") else 1)).all()
    again = decoder(hidden_size=256, intermediate_size=512, attention_bias=True, vocab_size=400)
    again.initialise(torch.Generator().manual_seed(1))
    assert not torch.equal(again.head_weight, model.head_weight)


def test_config_json_is_written_last_and_names_the_dtype(folder, tmp_path, monkeypatch):
    path, model = folder
    config = json.loads((path / "config.json").read_text())
    config.pop("torch_dtype")
    out = tmp_path / "new" / "out"
    written = []
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (written.append(Path(new).name), rename(old, new)))
    for name in TOKENIZER_FILES:
        (path / name).write_text(name)
    save_checkpoint(str(out), model, config | {"dtype": "float32"}, str(path))
    assert written[0] == "model.safetensors" and written[-1] == "config.json"
    assert set(written[1:-1]) == set(TOKENIZER_FILES)
    assert all((out / name).read_text() == name for name in TOKENIZER_FILES)
    found = json.loads((out / "config.json").read_text())
    assert (out / "config.json").read_text() == json.dumps(found, indent=2) + "\n"
    assert found["dtype"] == found["torch_dtype"] == "bfloat16"
    assert len(os.listdir(out)) == len(written)
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in out.iterdir())
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644
