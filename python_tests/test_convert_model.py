"""The trainable decoder against transformers, and checkpoint folders."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from edlm_engine.convert.checkpoint import decoder_config, load_decoder, save_checkpoint
from edlm_engine.convert.model import Decoder, DecoderConfig

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


def transformers_checkpoint(kind, tied, folder):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    extra = {"head_dim": 16} if kind == "Qwen3" else {}
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(**SHAPE, **extra, tie_word_embeddings=tied, rope_theta=5000.0, eos_token_id=0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for (
        name,
        weight,
    ) in model.named_parameters():  # norms start at one and biases at zero, which would hide errors
        if weight.dim() == 1:
            weight.data.add_(torch.randn_like(weight) * 0.3)
        else:
            weight.data.mul_(4)
        assert name
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
def test_logits_equal_those_of_transformers(kind, tied, tmp_path):
    theirs = transformers_checkpoint(kind, tied, tmp_path)
    ours, _ = load_decoder(tmp_path)
    assert ours.config.qk_norm is (kind == "Qwen3") and ours.config.attention_bias is (kind == "Qwen2")
    ids = torch.randint(0, 40, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = theirs(ids).logits, ours(ids)
    assert expected.std() > 0.1
    assert not (found - expected).abs().max() > 2e-5 * expected.abs().max()


def test_a_full_mask_changes_what_rows_see():
    model = Decoder(DecoderConfig(40, 32, 48, 2, 4, 2, 16)).initialise(torch.Generator().manual_seed(0))
    ids = torch.arange(8)[None]
    causal = model(ids, None, torch.ones(8, 8, dtype=torch.bool).tril())
    assert torch.allclose(model(ids), causal, atol=1e-6)
    assert not torch.allclose(model(ids, None, torch.ones(8, 8, dtype=torch.bool)), causal, atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    config = {**SHAPE, "architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "tie_word_embeddings": True}
    model = Decoder(decoder_config(config)).initialise(torch.Generator().manual_seed(0))
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
    with pytest.raises(FileNotFoundError, match=r"nowhere/config\.json is missing"):
        load_decoder(tmp_path / "nowhere")
    edit_tensors(path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' is missing"):
        load_decoder(path)
    edit_tensors(path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(5)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \(5,\), not \(32,\)"):
        load_decoder(path)
    edit_tensors(path, lambda tensors: tensors.update({"extra": torch.ones(5)}))
    with pytest.raises(ValueError, match=r"unknown tensor 'extra'|has shape"):
        load_decoder(path)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_decoder(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "'LlamaForCausalLM' cannot be trained here"),
        ({"hidden_size": None}, "hidden_size must be a positive integer"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling are not supported"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        decoder_config({**SHAPE, "architectures": ["Qwen3ForCausalLM"], "head_dim": 16, **change})
