"""Every autoregressive family and every rope scaling: logits of engine, trainer and transformers."""

import json

import pytest
import torch

from edlm_engine import CheckpointError
from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.convert.checkpoint import load_decoder
from edlm_engine.models.families import families, read_config
from edlm_engine.models.weights import load_transformer
from edlm_engine.rope import LinearScaling, Llama3Scaling, YarnScaling
from edlm_engine.steps.inputs import ForwardInputs
from edlm_engine.steps.kv_cache import PagedKVCache

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 0,
    "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip
KINDS = ["qwen2", "qwen3", "llama", "mistral"]
MORE = {"qwen3": {"head_dim": 32}, "mistral": {"sliding_window": None}}
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, every setting": {
        "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0,
        "mscale": 0.7, "mscale_all_dim": 0.3, "truncate": False,
    },
}  # fmt: skip


def write(folder, kind, tied=False, **changes):
    """A transformers model with weights wide enough for faults to show."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, **SHAPE, **MORE.get(kind, {}), tie_word_embeddings=tied, **changes
    )
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    return model


def engine_logits(folder, ids: list[int]) -> torch.Tensor:
    checkpoint, n = Checkpoint(folder), len(ids)
    model = load_transformer(checkpoint.model, checkpoint, checkpoint.names, torch.float32)
    cache = PagedKVCache(checkpoint.model, n, 1, torch.float32)
    slot = cache.reserve(n)
    rows, slots = torch.arange(n, dtype=torch.int32), torch.full((n,), slot, dtype=torch.int32)
    table = torch.tensor([[slot, 0, n, n, 1, 0]], dtype=torch.int32)
    tokens, first = torch.tensor(ids, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    hidden = model.forward(ForwardInputs(tokens, slots, rows, table, rows, slots, rows, first), cache)
    embedding = f"{checkpoint.names.body}.embed_tokens.weight"
    head = checkpoint.tensor(embedding if checkpoint.model.tied_head else checkpoint.names.head)
    return hidden @ head.float().T


def assert_logits(folder, model):
    ids = torch.randint(0, 40, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0]
        trainer = load_decoder(folder)[0](torch.tensor([ids]))[0]
    assert want.std() > 0.5
    for found in (engine_logits(folder, ids), trainer):
        assert (found - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits(kind, rope, tmp_path):
    settings = {"rope_type": rope.partition(",")[0], "rope_theta": 3000.0, **ROPES[rope]}
    model = write(tmp_path, kind, rope_parameters=settings)
    assert_logits(tmp_path, model)


@pytest.mark.parametrize(
    ("kind", "biases"),
    [("llama", {"attention_bias": True, "mlp_bias": True}), ("llama", {"mlp_bias": True}),
     ("qwen3", {"attention_bias": True})],
)  # fmt: skip
def test_biases(kind, biases, tmp_path):
    assert_logits(tmp_path, write(tmp_path, kind, **biases))


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_transformers(kind, tmp_path):
    """What config.json need not say, it does not say."""
    write(tmp_path, kind, tied=True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    silent = ("rope_parameters", "rope_theta", "architectures", "rms_norm_eps", "hidden_act", "head_dim")
    if kind == "qwen3":  # 128, which the weights are not of
        silent = silent[:-1]
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in silent}))
    assert_logits(tmp_path, transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


@pytest.mark.parametrize(
    "old",
    [
        {"rope_theta": 3000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 3000.0, "rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
        {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0}},
        {"rope_theta": 3000.0, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 3000, "rope_scaling": None, "rope_parameters": None},
        {"rope_parameters": {"rope_type": "yarn", "factor": None, "rope_theta": 3000.0,
         "original_max_position_embeddings": 128}},
    ],
    ids=str,
)  # fmt: skip
def test_forms_of_transformers_4_and_5(old, tmp_path):
    write(tmp_path, "llama")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters")
    path.write_text(json.dumps(config | old))
    assert_logits(tmp_path, transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


def read(kind="llama", **changes):
    return read_config({**SHAPE, "model_type": kind, **changes}, "config.json")


def test_scalings():
    linear = {"rope_type": "linear", "factor": 2}
    assert read(rope_scaling=linear)[0].rope.scaling == LinearScaling(2.0)
    llama3 = {"rope_type": "llama3", **ROPES["llama3"]}
    assert read(rope_parameters=llama3)[0].rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 64)
    yarn = read(rope_parameters={"rope_type": "yarn", "factor": 4.0})[0]
    assert isinstance(yarn.rope.scaling, YarnScaling) and yarn.rope.scaling.original_positions == 512
    assert yarn.max_positions == 2048  # what the scaling is for


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mixtral", "architectures": ["MixtralForCausalLM"]}, "no such family here; known: DiffEnc"),
        ({"kind": "qwen2", "architectures": ["Qwen2ForSequenceClassification"]}, "no such family here"),
        ({"kind": "mistral", "max_position_embeddings": 8192}, "sliding_window is 4096"),
        ({"kind": "mistral", "sliding_window": 256}, "sliding_window is 256"),
        ({"kind": "llama", "sliding_window": 256}, "sliding_window is 256"),
        ({"rope_theta": 0}, "key 'rope_theta' must be a positive number, got 0"),
        ({"rope_theta": 10**400}, "key 'rope_theta' must be a positive number, got inf"),
        ({"rms_norm_eps": float("nan")}, "key 'rms_norm_eps' must be a positive number, got nan"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope type 'dynamic' is not supported; known: default, lin"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: key 'factor' is missing"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "key 'low_freq_factor' is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
         "rope_parameters and rope_scaling disagree"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "settings by layer type"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "only whole heads are"),
    ],
)  # fmt: skip
def test_refused(changes, message):
    with pytest.raises(CheckpointError, match=rf"^config\.json: .*{message}"):
        read(**changes)


def test_a_window_that_nothing_reaches_is_none():
    assert read("mistral", sliding_window=512)[0].num_kv_heads == 2
    shape = {
        "sliding_window": None,
        "num_key_value_heads": None,
        "num_attention_heads": 8,
        "hidden_size": 128,
    }
    assert read("mistral", **shape)[0].num_kv_heads == 8


def test_every_family_has_words_of_its_own():
    for words in ("architectures", "model_types"):
        known = [word for family in families() for word in getattr(family, words)]
        assert len(known) == len(set(known)) >= len(families())
