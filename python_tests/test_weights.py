"""From tensors to a model: what is read when, what is copied, and how large buffers are."""

from dataclasses import replace

import pytest
import torch
from checkpoints import config_dict, random_weights, write_checkpoint

from edlm_engine import Engine
from edlm_engine.models import weights as loading
from edlm_engine.models.families import read_config
from edlm_engine.models.family import TensorNames
from edlm_engine.models.heads import Head, QuantizedHead
from edlm_engine.models.linears import PackedLinear, QuantizedLinear
from edlm_engine.models.quantization import QuantizedWeight, quantize_weight
from edlm_engine.models.weights import Weights, load_transformer


class Tensors:
    """A checkpoint's tensors, with a log of what is asked of them."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors, self.log = tensors, []

    def tensor(self, name, shape, dtype=None):
        self.log.append(name)
        tensor = self.tensors[name]
        assert tensor.shape == tuple(shape) and (dtype is None or tensor.dtype == dtype)
        return tensor

    def close(self):
        self.log.append("close")


def made(shape="qwen3", **changes) -> tuple:
    config = config_dict(shape, num_hidden_layers=3, **changes)
    return read_config(config, "config.json")[0], Tensors(random_weights(config))


def load(config, tensors, **options):
    return load_transformer(config, tensors, TensorNames(), torch.float32, **options)


def stored(tensors: Tensors) -> Tensors:
    """The same checkpoint with its matrices, but for the embedding, in int8; a tied head lies beside it."""
    found = dict(tensors.tensors)
    found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])
    for name in [name for name, t in found.items() if t.dim() == 2 and "embed" not in name]:
        found[name], found[f"{name}_scale"] = quantize_weight(found[name])
    return Tensors(found)


@pytest.mark.parametrize("shape", ("qwen2", "qwen3"))
@pytest.mark.parametrize("quantization", (None, "int8"))
def test_the_file_is_let_go_of_after_every_layer(shape, quantization, monkeypatch):
    """What was read through a mapping counts as taken until it is closed: a model would be there twice."""
    config, tensors = made(shape)
    monkeypatch.setattr(loading, "trim_memory", lambda: tensors.log.append("trim"))
    tick = lambda: tensors.log.append("tick")  # noqa: E731
    load(config, tensors, tick=tick, quantization=quantization)
    parts, part = [], set()
    for entry in tensors.log:
        if entry == "close":
            parts.append(part)
            part = set()
        else:
            part.add(".".join(entry.split(".")[:3]) if ".layers." in entry else entry)
    layers = [{"trim", "tick"} | {f"model.layers.{i}"} for i in (1, 2)]
    head = "lm_head.weight" if shape == "qwen2" else "model.embed_tokens.weight"
    first = {"model.layers.0"} | ({head} if shape == "qwen2" or quantization else set())
    assert parts == [{"model.embed_tokens.weight"}, first, *layers]
    assert part == {"trim", "tick", "model.norm.weight"}
    assert tensors.log.count("tick") == tensors.log.count("trim") == 3


def test_what_the_model_uses_as_it_is_is_copied():
    """The file may change, and be gone."""
    for shape in ("qwen2", "qwen3"):
        config, tensors = made(shape)
        model = load(config, tensors)
        own = [model.embedding, model.final_norm, model.head.weight]
        for layer in model.layers:
            own += [layer.input_norm, layer.mlp_norm, layer.q_norm, layer.k_norm, layer.qkv_bias]
        places = {t.data_ptr() for t in tensors.tensors.values()}
        assert not places & {t.data_ptr() for t in own if t is not None}
        assert (model.head.weight is model.embedding) == (shape == "qwen3")


def test_which_layers():
    config, tensors = made()
    dense, quantised = load(config, tensors), load(config, tensors, quantization="int8")
    for model, kind, head in ((dense, PackedLinear, Head), (quantised, QuantizedLinear, QuantizedHead)):
        assert len(model.layers) == 3 and isinstance(model.head, head)
        for layer in model.layers:
            assert all(
                isinstance(x, kind) for x in (layer.qkv, layer.attention_out, layer.gate_up, layer.down)
            )


@pytest.mark.parametrize("shape", ("qwen2", "qwen3"))
def test_what_is_stored_quantised_is_what_quantising_would_give(shape):
    config, tensors = made(shape)
    ours, theirs = (
        load(config, tensors, quantization="int8"),
        load(config, stored(tensors), quantization="int8", stored=True),
    )
    assert torch.equal(ours.head.weight, theirs.head.weight)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        for name in ("qkv", "attention_out", "gate_up", "down"):
            assert torch.equal(getattr(a, name).weight, getattr(b, name).weight)


def test_weights():
    tensors = Tensors({"a": torch.eye(4), "b": 2 * torch.eye(4), "n": torch.ones(4, dtype=torch.bfloat16)})
    dense = Weights(tensors, torch.float32, "cpu", None, stored=False)
    assert torch.equal(dense.merged([("a", 4), ("b", 4)], 4), torch.cat([torch.eye(4), 2 * torch.eye(4)]))
    assert dense.get("n", 4).dtype == torch.float32
    assert dense.get("a", 4, 4).data_ptr() == tensors.tensors["a"].data_ptr()
    assert dense.get("a", 4, 4, kept=True).data_ptr() != tensors.tensors["a"].data_ptr()
    assert dense.matrix("a", 4, 4).data_ptr() == tensors.tensors["a"].data_ptr()  # it will be packed
    assert dense.matrix("a", 4, 4, kept=True).data_ptr() != tensors.tensors["a"].data_ptr()
    quantised = Weights(tensors, torch.float32, "cpu", torch.int8, stored=False)
    both = quantised.merged([("a", 4), ("b", 4)], 4)
    assert isinstance(both, QuantizedWeight) and both.values.shape == (8, 4)
    assert torch.allclose(both.values * both.scale[:, None], torch.cat([torch.eye(4), 2 * torch.eye(4)]))


@pytest.mark.parametrize(
    ("changes", "columns"),
    [({"head_dim": 64}, 256), ({"intermediate_size": 320}, 320), ({"hidden_size": 192}, 192)],
)
def test_buffers_hold_the_widest_input_of_any_layer(changes, columns, tmp_path, monkeypatch):
    asked, plain = [], loading.QuantizedRows
    monkeypatch.setattr(loading, "QuantizedRows", lambda *a: (asked.append(a), plain(*a))[1])
    config, tensors = made(**changes)
    load(config, tensors, quantization="int8", rows=48)
    load(config, tensors, rows=48)
    load(config, tensors, quantization="int8")
    assert asked == [(columns, torch.uint8, "cpu", rows) for rows in (48, 0, 0)]
    with Engine(write_checkpoint(tmp_path, config_dict(**changes)), quantization="int8") as engine:
        assert len(engine.generate([5, 6, 7], max_new_tokens=4, ignore_eos=True).token_ids) == 4


def test_what_cannot_be_quantised_is_refused_before_anything_is_read():
    config, tensors = made()
    wide = replace(config, intermediate_size=10**6)
    with pytest.raises(ValueError, match=r"intermediate_size is 1000000; .* leave quantization out"):
        load(wide, tensors, quantization="int8")
    assert not tensors.log
    with pytest.raises(AssertionError):  # the tensors are of another size, which reading them shows
        load(wide, tensors)
    assert tensors.log
