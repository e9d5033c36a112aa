"""The recipe's data, and the training of its autoregressive base."""

import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))

import base
import tasks

from edlm_engine.convert.checkpoint import load_decoder
from edlm_engine.convert.train import TrainConfig

CONFIG = TrainConfig(
    steps=4, rows=2, length=16, learning_rate=1e-2, prompt_weight=0.25, device="cpu", bf16=False
)
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 16}


@pytest.fixture(autouse=True)
def small(monkeypatch, threads):
    threads(1)
    monkeypatch.setattr(base, "SHAPE", base.SHAPE | SMALL)
    monkeypatch.setattr(base, "VOCABULARY", 300)
    monkeypatch.setattr(base, "islice", lambda problems, count: islice(problems, min(count, 40)))


@pytest.fixture
def folders(tmp_path):
    base.write_tokenizer(tmp_path / "tokenizer", seed=0)
    return tmp_path / "base", tmp_path / "run", base.write_data(tmp_path / "data", 0), tmp_path / "tokenizer"


def test_data_are_the_training_sides_problems_written_once(tmp_path):
    path = base.write_data(tmp_path / "data", seed=3, documents=24)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    problems = list(islice(tasks.problems(3, held_out=False, order=tasks.TRAINING_MIX), 24))
    assert lines == [{"prompt": p.prompt, "completion": p.completion} for p in problems]
    assert base.write_data(tmp_path / "data", seed=4, documents=1) == path
    assert len(path.read_text().splitlines()) == 24 and [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_tokenizer_is_of_prompts_and_completions_and_written_once(tmp_path):
    tokenizer = base.write_tokenizer(tmp_path / "tokenizer", seed=0)
    assert tokenizer.get_vocab_size() == 300
    settings = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|endoftext|>" and settings["mask_token"] == "<|mask|>"
    again = base.write_tokenizer(tmp_path / "tokenizer", seed=1)
    assert again.to_str() == tokenizer.to_str() != base.write_tokenizer(tmp_path / "other", seed=1).to_str()


class Model:
    """Logits that are a table of the input token alone."""

    def __init__(self, vocabulary):
        self.table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(0))

    def __call__(self, ids):
        return self.table[ids.long()].bfloat16()


def test_the_loss_is_of_every_next_token_by_its_own_weight():
    generator = torch.Generator().manual_seed(1)
    model, ids = Model(7), torch.randint(0, 7, (2, 5), generator=generator, dtype=torch.int32)
    weights = torch.rand(2, 5, generator=generator)
    total = 0.0
    for row in range(2):
        for i in range(4):
            log_p = model.table[ids[row, i].item()].bfloat16().float().log_softmax(-1)
            total -= weights[row, i + 1].item() * log_p[ids[row, i + 1].item()].item()
    found = base.autoregressive_loss(model, ids, weights)
    assert found.item() == pytest.approx(total / weights[:, 1:].sum().item(), rel=1e-6)


def test_the_base_is_trained_once_and_goes_on_where_it_was_stopped(folders, monkeypatch):
    out, run, data, tokenizer = folders
    calls, seen = [], []
    loss = base.autoregressive_loss

    def watch(model, ids, weights):
        seen.append((ids.clone(), weights.clone(), torch.is_autocast_enabled("cpu")))
        return loss(model, ids, weights)

    monkeypatch.setattr(base, "autoregressive_loss", watch)

    def stop(model, step):
        calls.append((type(model).__name__, step))
        if len(calls) == 1:
            raise RuntimeError("stopped")

    config = replace(CONFIG, checkpoint_every=1)
    with pytest.raises(RuntimeError, match="stopped"):
        base.train_base(out, run, data, tokenizer, config, (2, stop))
    assert (run / "base-state.pt").is_file() and not out.exists()
    assert base.train_base(out, run, data, tokenizer, config, (2, stop))
    assert calls == [("Decoder", 2), ("Decoder", 4)] and len(seen) == 4
    assert all(ids.shape == (2, 16) and set(w.flatten().tolist()) <= {0.25, 1.0} for ids, w, _ in seen)
    assert any((w == 0.25).any() for _, w, _ in seen) and not any(bf16 for *_, bf16 in seen)
    model, found = load_decoder(out)
    assert (found["eos_token_id"], found["vocab_size"], found["model_type"]) == (0, 300, "qwen3")
    assert (out / "tokenizer.json").is_file() and base.load_base(out).training is False
    assert not torch.equal(model.model.norm.weight, torch.ones(32))
    assert base.train_base(out, run, data, tokenizer, config) and len(seen) == 4


def test_seeds_are_of_the_weights_and_the_data(folders, tmp_path, monkeypatch):
    _, _, data, tokenizer = folders
    weights, ids = [], []
    loss = base.autoregressive_loss

    def watch(model, batch, batch_weights):
        weights.append(model.model.embed_tokens.weight[3].detach().clone())
        ids.append(batch.tolist())
        return loss(model, batch, batch_weights)

    monkeypatch.setattr(base, "autoregressive_loss", watch)
    for i, seed in enumerate((0, 0, 1)):
        config = replace(CONFIG, steps=1, seed=seed)
        assert base.train_base(tmp_path / f"base{i}", tmp_path / f"run{i}", data, tokenizer, config)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("bf16", [True, None])
def test_precision_is_the_configs_or_the_processors(folders, monkeypatch, bf16):
    out, run, data, tokenizer = folders
    seen = []
    loss = base.autoregressive_loss

    def watch(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss(*arguments)

    monkeypatch.setattr(base, "autoregressive_loss", watch)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    base.train_base(out, run, data, tokenizer, replace(CONFIG, steps=1, bf16=bf16))
    assert seen == [bool(bf16)]
