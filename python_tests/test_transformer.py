"""The transformer alone: a forward of several query blocks against plain torch, and its buffers."""

import pytest
import torch
from checkpoints import config_dict, random_weights, write_checkpoint
from reference import generate as reference

from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.models.families import read_config
from edlm_engine.models.transformer import Transformer, Workspace, activation_widths, add_bias, rope_table
from edlm_engine.models.weights import load_transformer
from edlm_engine.steps.inputs import ForwardInputs
from edlm_engine.steps.kv_cache import PagedKVCache


def inputs_of(tokens: list[list[int]], slots: list[int], heads: list[int]) -> ForwardInputs:
    """Whole sequences, which see themselves; heads: the rows that are wanted."""
    flat = torch.tensor([t for one in tokens for t in one], dtype=torch.int32)
    of_slot = torch.tensor([s for s, one in zip(slots, tokens, strict=True) for _ in one], dtype=torch.int32)
    positions = torch.tensor([i for one in tokens for i in range(len(one))], dtype=torch.int32)
    table, row = [], 0
    for slot, one in zip(slots, tokens, strict=True):
        table.append([slot, 0, len(one), len(one), 0, row])
        row += len(one)
    heads = torch.tensor(heads, dtype=torch.int32)
    table, first = torch.tensor(table, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    return ForwardInputs(flat, of_slot, positions, table, heads, of_slot[heads], positions[heads], first)


def with_biases() -> tuple[dict, dict]:
    """Llama with all biases that there are."""
    weights = random_weights(config_dict("qwen2"))
    for name in [name for name in weights if name.endswith("o_proj.weight") or ".mlp." in name]:
        weights[name.replace("weight", "bias")] = torch.randn(len(weights[name]))
    silent = dict.fromkeys(("mask_token_id", "block_size", "dlm_paradigm", "qk_norm"))
    changes = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": True, **silent}
    return config_dict("qwen2", **changes), weights


@pytest.fixture(scope="module", params=("qwen2", "qwen3", "biases", "other sizes"))
def model(request, tmp_path_factory) -> tuple[Transformer, reference.Model]:
    if request.param == "biases":
        config, weights = with_biases()
    else:
        sizes = {"hidden_size": 96, "num_hidden_layers": 3, "head_dim": 32}
        shape, changes = ("qwen3", sizes) if request.param == "other sizes" else (request.param, {})
        config = config_dict(shape, **changes)
        weights = random_weights(config)
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), config, weights)
    checkpoint = Checkpoint(folder)
    made = load_transformer(checkpoint.model, checkpoint, checkpoint.names, torch.float32)
    return made, reference.load(folder)


def test_forward(model):
    """Two sequences in one forward, the second across a page; only the wanted rows come out, in order."""
    transformer, other = model
    tokens = [[5, 9, 2, 77, 31], [(7 * i) % 120 for i in range(70)]]
    cache = PagedKVCache(transformer.config, 256, 4, torch.float32)
    slots = [cache.reserve(len(one)) for one in tokens]
    heads = [3, 0, 5, 74, 40]
    found = transformer.forward(inputs_of(tokens, slots, heads), cache)
    want = torch.cat([reference.hidden_states(other, one, [len(one)] * len(one)) for one in tokens])[heads]
    assert found.shape == want.shape and (found - want).abs().max() <= 1e-4
    assert transformer.forward(inputs_of(tokens, slots, []), cache).shape == (0, want.shape[1])


def test_buffers_grow_by_powers_of_two_and_stay():
    space = Workspace({"a": (3,), "b": (2, 4)}, torch.bfloat16, "cpu")
    assert space.buffers() == []
    seen = {}
    for count, capacity in ((1, 1), (5, 8), (8, 8), (0, 8), (3, 8), (9, 16), (2, 16)):
        rows = space.rows(count)
        assert rows["a"].shape == (count, 3) and rows["b"].shape == (count, 2, 4)
        assert {t.dtype for t in rows.values()} == {torch.bfloat16}
        assert [t.shape for t in space.buffers()] == [(capacity, 3), (capacity, 2, 4)]
        assert seen.setdefault(capacity, space.buffers()[0].data_ptr()) == space.buffers()[0].data_ptr()
    empty = Workspace({"a": (3,)}, torch.float32, "cpu")
    assert empty.rows(0)["a"].shape == (0, 3)


def test_a_larger_forward_changes_the_buffers_and_a_smaller_one_does_not(model):
    transformer, _ = model
    cache = PagedKVCache(transformer.config, 512, 1, torch.float32)
    slot = cache.reserve(300)
    places = []
    for count in (200, 300, 20):
        transformer.forward(inputs_of([[5] * count], [slot], [0]), cache)
        places.append([t.data_ptr() for t in transformer.buffers()])
    assert len(places[0]) == len(activation_widths(transformer.config)) + 3
    assert places[0][0] != places[1][0] and places[1] == places[2]


def test_widths():
    config = read_config(config_dict(head_dim=32, num_key_value_heads=1), "config.json")[0]
    assert activation_widths(config) == {
        "hidden": (64,), "normed": (64,), "delta": (64,), "qkv": (4 * 32 + 2 * 32,), "q": (4, 32),
        "attended": (4, 32), "gate_up": (192,), "activated": (96,),
    }  # fmt: skip


def test_add_bias():
    x = torch.ones(2, 3)
    add_bias(x, None)
    assert x.eq(1).all()
    add_bias(x, torch.tensor([1.0, 2.0, 3.0]))
    assert x.tolist() == [[2, 3, 4]] * 2


def test_rope_table():
    table = rope_table(read_config(config_dict(), "config.json")[0], 40)
    assert table.shape == (40, 16) and table.dtype == torch.float32
    frequencies = 10000.0 ** (-torch.arange(8) / 8)
    for position in (0, 1, 39):
        angles = position * frequencies
        assert torch.allclose(table[position], torch.cat([angles.cos(), angles.sin()]), atol=1e-5)


def test_what_its_dense_layers_multiply_with_is_at_hand(model):
    """Whoever captures a step lets it search before."""
    made, _ = model
    other = Transformer(made.config, made.embedding, made.layers, made.final_norm, made.head, "products")
    assert other.products == "products" and made.products is None


def test_a_quantised_forward_is_near_the_dense_one(tmp_path):
    folder = write_checkpoint(tmp_path, config_dict("qwen2"))
    found = []
    for quantization in (None, "int8"):
        checkpoint = Checkpoint(folder)
        names, dtype = checkpoint.names, torch.float32
        made = load_transformer(checkpoint.model, checkpoint, names, dtype, quantization=quantization)
        cache = PagedKVCache(made.config, 64, 4, torch.float32)
        inputs = inputs_of([list(range(3, 40))], [cache.reserve(37)], list(range(37)))
        found.append(made.forward(inputs, cache).clone())
    dense, quantised = found
    assert 0 < (quantised - dense).abs().mean() <= 0.25 * dense.abs().mean()  # without any relation: 1.4
