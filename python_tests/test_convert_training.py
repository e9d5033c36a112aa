"""A conversion from folder to folder: what it learns and sees, seeds, resuming, and what it writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from convert_tools import BASE_CONFIG, MASK, QUICK, tiny_decoder, write_base, write_data, write_tokenizer
from safetensors.torch import load_file

from edlm_engine import CheckpointError, Engine
from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.checkpoints.folder import ASSETS
from edlm_engine.convert import conversion, convert
from edlm_engine.convert.checkpoint import load_decoder, save_checkpoint
from edlm_engine.convert.loss import Batch, diffusion_loss


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # the matrices are too small to share, and waiting threads slow other tests down


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base")


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data.jsonl")


@pytest.fixture
def watched(base, data, tmp_path, monkeypatch):
    """Converts with changes of QUICK; returns what every step's loss was given: (batch, mask id, autocast,
    config)."""
    seen = []

    def watch(hidden, head, batch, mask_token_id, config):
        bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        seen.append((batch, mask_token_id, bf16, config))
        return diffusion_loss(hidden, head, batch, mask_token_id, config)

    def run(**changes):
        seen.clear()
        out = tmp_path / f"watched{len(list(tmp_path.iterdir()))}"
        convert(base, out, data, replace(QUICK, **changes))
        return list(seen)

    monkeypatch.setattr(conversion, "diffusion_loss", watch)
    return run


def loss_of_second_block(folder):
    """Of four masks in a row behind four letters, which the data determine."""
    model, _ = load_decoder(folder)
    ids = torch.tensor([[2, 3, 4, 5, 6, 7, 8, 9]])
    slots = torch.arange(8)[None]
    blocks = slots // 4
    masked = (blocks == 1)[:, None]
    batch = Batch(ids, torch.ones(1, 8), blocks, slots, masked, torch.ones(masked.shape))
    with torch.no_grad():
        config = replace(QUICK, length=8)
        return diffusion_loss(model.hidden, model.head_weight, batch, MASK, config).item()


def test_conversion_learns_to_fill_masks(base, data, tmp_path):
    data.write_text(json.dumps({"text": "a b c d e f g h"}))
    convert(base, tmp_path / "out", data, replace(QUICK, steps=150, length=9, rows=16, learning_rate=1e-2))
    untrained, trained = (loss_of_second_block(tmp_path / name) for name in ("base", "out"))
    assert untrained > 0.5  # half the tokens at about ln 10 each
    assert trained < 0.1 * untrained


def test_noise_is_of_seed_and_step(watched):
    first, again, other = watched(), watched(), watched(seed=1)
    levels = [[batch.level for batch, *_ in run] for run in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(levels[0], levels[1], strict=True))
    seen = [*levels[0], *levels[2]]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_the_order_of_the_data_is_of_the_seed(watched):
    ids = [[batch.ids.tolist() for batch, *_ in watched(seed=seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_noise_depends_on_all_bits_of_the_seed():
    draws = [
        torch.rand(1, generator=conversion.noise_generator(seed, step)).item()
        for seed in (0, 1, 2, 2**20, 2**31 - 1)
        for step in (0, 1, 2, 1000)
    ]
    assert len(set(draws)) == len(draws)


def test_settings_reach_the_loss(watched):
    batch, mask, bf16, config = watched(prompt_weight=0.25)[0]
    in_prompt = (batch.ids >= 2) & (batch.ids <= 4)  # a b c
    assert (batch.weights[in_prompt] == 0.25).all() and (batch.weights[~in_prompt] == 1).all()
    assert in_prompt.any() and not in_prompt.all()
    assert (mask, bf16) == (MASK, False) and config.block_size == 4
    assert watched(mask_token_id=9)[0][1] == 9
    assert watched(bf16=True)[0][2]
    level = watched(min_level=0.9)[0][0].level
    assert level.min() >= 0.9


@pytest.mark.parametrize("native", [False, True])
def test_precision_is_what_the_device_does_well(watched, native, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    *_, bf16, config = watched(bf16=None)[0]
    assert bf16 is native and config.bf16 is native


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(base, data, tmp_path, optimizer):
    config = replace(QUICK, optimizer=optimizer, checkpoint_every=4)
    assert convert(base, tmp_path / "whole", data, config)
    assert not convert(base, tmp_path / "parts", data, config, stop_after=3)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["resume.pt"]
    assert convert(base, tmp_path / "parts", data, config)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    start = weights_of(base)
    assert not any(torch.equal(whole[name].float(), start[name]) for name in whole if "_proj" in name)


def test_a_stop_while_the_checkpoint_is_written_loses_nothing(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.copyfile", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        convert(base, tmp_path / "out", data, QUICK)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors", "resume.pt"]
    monkeypatch.undo()
    assert convert(base, tmp_path / "out", data, QUICK)
    convert(base, tmp_path / "other", data, QUICK)
    first, second = weights_of(tmp_path / "out"), weights_of(tmp_path / "other")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_state_of_another_run_is_refused(base, data, tmp_path):
    out = tmp_path / "out"
    convert(base, out, data, QUICK, stop_after=1)
    with pytest.raises(ValueError, match=r"half_life_ratio=0\.1, not None; delete it to start over"):
        convert(base, out, data, replace(QUICK, half_life_ratio=None))
    with data.open("a") as file:
        file.write('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"resume\.pt is of a run with data_checksum="):
        convert(base, out, data, QUICK)
    write_data(data)
    model, config = load_decoder(base)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    save_checkpoint(base, model, config, base, torch.float32)
    with pytest.raises(ValueError, match=r"resume\.pt is of a run with base_checksum="):
        convert(base, out, data, QUICK)


def test_every_is_called_with_the_model_in_training(base, data, tmp_path):
    calls = []

    def look(model, step):
        calls.append((step, model.training, model.model.norm.weight.detach().clone()))

    convert(base, tmp_path / "out", data, QUICK, every=(2, look))
    assert [(step, training) for step, training, _ in calls] == [(2, True), (4, True), (6, True)]
    assert not torch.equal(calls[0][2], calls[1][2])
    last = weights_of(tmp_path / "out")["model.norm.weight"]
    assert torch.equal(calls[2][2].bfloat16(), last)


def test_the_folder_is_a_checkpoint_that_says_what_it_is(base, data, tmp_path):
    convert(base, tmp_path / "out", data, replace(QUICK, token_shift=True))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = {
        "architectures": ["EfficientDLM"],
        "model_type": "edlm",
        "mask_token_id": MASK,
        "block_size": 4,
        "dlm_paradigm": "block_diff",
        "dlm_type": "dream",
        "attention_bias": False,
        "qk_norm": True,
        "torch_dtype": "bfloat16",
        "tok_mask_half_life_ratio": 0.1,
    }
    assert wanted.items() <= config.items()
    kept = {name: value for name, value in BASE_CONFIG.items() if name not in wanted}
    assert kept.items() <= config.items()
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert load_decoder(tmp_path / "out")[0].config == load_decoder(base)[0].config
    with pytest.raises(FileExistsError, match="already holds a checkpoint"):
        convert(base, tmp_path / "out", data, QUICK)


@pytest.mark.parametrize(
    ("settings", "paradigm", "dlm_type"),
    [
        ({}, "block_diff", "llada"),
        ({"attention": "no_clean_context"}, "block_diff", "llada"),
        ({"attention": "bidirectional", "token_shift": True}, "bidirectional", "dream"),
    ],
)
def test_how_it_was_trained_is_how_it_decodes(base, data, tmp_path, settings, paradigm, dlm_type):
    convert(base, tmp_path / "out", data, replace(QUICK, steps=1, **settings))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dlm_paradigm"], config["dlm_type"]) == (paradigm, dlm_type)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_documents_end_with_the_first_of_several_eos_ids(base, watched, tmp_path):
    edit_config(base, eos_token_id=[0, 1])
    (base / "generation_config.json").write_text('{"eos_token_id": [8, 1]}')
    ids = torch.cat([batch.ids for batch, *_ in watched()])
    assert (ids == 0).any() and not (ids == 1).any()
    (out,) = tmp_path.glob("watched*")
    assert Checkpoint(out).decoding.eos_token_ids == (0, 1, 8)


def test_what_is_unfit_is_refused_before_the_model_is_loaded(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "decoder_of", None)

    def refuse(error, message, config=QUICK, out=tmp_path / "out", source=data):
        with pytest.raises(error, match=message):
            convert(base, out, source, config)
        assert not (tmp_path / "out").exists()

    refuse(FileNotFoundError, "no training data", source=tmp_path / "none.jsonl")
    refuse(FileExistsError, "base already holds a checkpoint", out=base)
    refuse(NotADirectoryError, r"data\.jsonl is a file; choose a folder", out=data)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    refuse(FileExistsError, r"used holds 'notes\.txt', from no stopped run", out=tmp_path / "used")
    refuse(ValueError, r"length 65 is more than the 64 positions of .*base", replace(QUICK, length=65))
    refuse(ValueError, "mask_token_id 10 is outside the vocabulary of 10", replace(QUICK, mask_token_id=10))
    refuse(ValueError, "mask_token_id -1 is outside the vocabulary of 10", replace(QUICK, mask_token_id=-1))
    refuse(ValueError, "device must be auto, cpu or cuda, got 'gpu'", replace(QUICK, device="gpu"))
    data.write_text('{"text": "a"}\n\n{"prompt": "a"}\n')
    refuse(ValueError, r"data\.jsonl:3: expected .*, found \{'prompt': 'a'\}")
    write_data(data)
    edit_config(base, eos_token_id=10)
    refuse(ValueError, r"config\.json: .*eos_token_id.* 10.* is outside the vocabulary")
    edit_config(base, eos_token_id=None)
    refuse(ValueError, r"config\.json: eos_token_id is missing")


def test_a_longest_row_fills_the_positions(base, data, tmp_path):
    assert convert(base, tmp_path / "out", data, replace(QUICK, length=64, steps=1))


def test_a_broken_state_is_refused_before_the_model_is_loaded(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "decoder_of", None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "resume.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"resume\.pt: is no saved state of this run; delete it"):
        convert(base, tmp_path / "out", data, QUICK)


def test_a_base_that_the_new_family_cannot_express_is_refused(base, data, tmp_path, monkeypatch):
    shape = load_decoder(base)[0].config
    reader = type("Family", (), {"read": lambda *_: (replace(shape, qk_norm=False), None)})()
    monkeypatch.setattr(conversion, "find_family", lambda _: reader)
    with pytest.raises(ValueError, match=r"config\.json: as an EfficientDLM it would be read as"):
        convert(base, tmp_path / "out", data, QUICK)
    assert not (tmp_path / "out").exists()


def test_bundled_names_hub_ids_and_what_the_run_says(tmp_path, capsys, monkeypatch):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "Q: Sort [2, 1].\nA: ", "completion": "The result is [1, 2]."}))
    config = replace(QUICK, steps=1, rows=1)
    assert convert("edlm-tiny-ar", tmp_path / "out", data, config)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("documents: 1, tokens: ")
    assert said[0].endswith(", mask token: '<|mask|>' (id 1), steps: 1 of 1 x 12 tokens, fp32 on cpu")
    assert said[1].startswith("conversion step 1/1  loss ")
    asked = []
    monkeypatch.setattr(conversion, "resolve", lambda *what: asked.append(what) or ASSETS / "edlm-tiny-ar")
    assert not convert("some/model", tmp_path / "other", data, config, stop_after=0, hub={"revision": "r"})
    assert asked == [("some/model", {"revision": "r"})]
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="no bundled model"):
        convert("no-such-model", tmp_path / "other", data, config)
    assert (ASSETS / "edlm-tiny-ar" / "config.json").is_file() and not (tmp_path / "other").exists()


@pytest.mark.parametrize("rows", [10, 12])
def test_a_base_without_a_mask_token_gets_one(data, tmp_path, rows, capsys):
    """In an unused row of a padded vocabulary, or in a new one."""
    base = tmp_path / "base"
    write_base(base)
    without = {"<|endoftext|>": 0, "z": 1, **{letter: i + 2 for i, letter in enumerate("abcdefgh")}}
    write_tokenizer(base, without)
    (base / "tokenizer_config.json").unlink()
    model = tiny_decoder(vocab_size=rows)
    save_checkpoint(base, model, {**BASE_CONFIG, "vocab_size": rows}, base, torch.float32)
    out = tmp_path / "out"
    assert convert(base, out, data, replace(QUICK, steps=2))
    assert "mask token: '<|mask|>' (id 10, new), steps" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["mask_token_id"] == 10 and config["vocab_size"] == max(rows, 11)
    with Engine(out, dtype="float32") as engine:
        assert engine.tokenizer.encode("a <|mask|> b") == [2, 10, 3]
        assert len(engine.generate([2, 3, 4], max_new_tokens=8, ignore_eos=True).token_ids) == 8
    found = tmp_path / "again"
    assert convert(out, found, data, replace(QUICK, steps=1))  # it has one now
    assert json.loads((found / "config.json").read_text())["vocab_size"] == max(rows, 11)


def test_without_a_tokenizer_token_ids_train_and_the_mask_is_a_new_row(base, tmp_path, capsys):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    np.save(tmp_path / "ids.npy", np.array([2, 3, 4, 0] * 30, np.uint16))
    assert convert(base, tmp_path / "out", tmp_path / "ids.npy", replace(QUICK, steps=1))
    assert "mask token: id 10, new, steps" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors"]
    assert load_decoder(tmp_path / "out")[0].config.vocab_size == 11
    config = replace(QUICK, steps=1, mask_token_id=5)
    assert convert(base, tmp_path / "given", tmp_path / "ids.npy", config)
    assert "mask token: id 5, steps" in capsys.readouterr().out
