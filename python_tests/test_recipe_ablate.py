"""The recipe's ablations: what each cell trains and measures."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import write_ar_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))

import ablate
import base
from generate import Decoding
from run import CONVERSION


@pytest.fixture
def folders(tmp_path):
    base.save_tokenizer(base.train_tokenizer(["a b c"], 300), write_folder(tmp_path / "tokenizer"))
    return tmp_path, tmp_path / "results"


def write_folder(path):
    path.mkdir()
    return path


@pytest.fixture
def cells(monkeypatch):
    """Every (folder name, its training config, how it is decoded) that is measured, instead of doing so."""
    measured = []
    monkeypatch.setattr(ablate, "converted", lambda work, config: config)

    def measure(config, tokenizer, how):
        measured.append((config, how))
        return {"exact": 0.5, "standard_error": 0.1, "tpf": 1.0}

    monkeypatch.setattr(ablate, "measured", measure)
    return measured


def test_cells_differ_in_what_their_table_asks(folders, cells):
    work, results = folders
    ablate.ablate_all(work, results, CONVERSION)
    found = json.loads((results / "ablations.json").read_text())
    names = list(found["cells"])
    by_name = dict(zip(names, cells, strict=True))
    assert len(names) == 6 + 15 + 16 and found["budget"]["count"] == ablate.COUNT
    assert (found["budget"]["steps"], found["budget"]["seed"]) == (ablate.STEPS, CONVERSION.seed)
    for config, _ in cells:
        assert (config.cosine_steps, config.cooldown_steps, config.seed) == (None, 0, CONVERSION.seed)
        assert config.steps == ablate.STEPS * (2 if config is by_name["table1/e"][0] else 1)
        assert config.learning_rate == CONVERSION.learning_rate
    for row, (attention, shift) in {
        "b": ("bidirectional", True), "c": ("bidirectional", False), "d": ("no_clean_context", True),
        "e": ("no_clean_context", True), "f": ("block_diff", True), "g": ("block_diff", False),
    }.items():  # fmt: skip
        config, how = by_name[f"table1/{row}"]
        assert (config.attention, config.token_shift, config.half_life_ratio) == (attention, shift, None)
        assert how == Decoding(16, None, attention == "bidirectional", shift)
        assert config.sequence_noise is (attention == "bidirectional")
    for name, ratio in (("uniform", None), ("0.25", 0.25), ("0.1", 0.1)):
        for threshold in ablate.THRESHOLDS:
            config, how = by_name[f"table2/{name}/{threshold}"]
            assert config.half_life_ratio == ratio and how == Decoding(16, threshold)
            assert found["cells"][f"table2/{name}/{threshold}"]["threshold"] == threshold
    for training in ablate.BLOCKS:
        for evaluation in ablate.BLOCKS:
            config, how = by_name[f"fig3/{training}/{evaluation}"]
            assert (config.block_size, config.half_life_ratio) == (training, None)
            assert how == Decoding(evaluation, None)


def test_cells_that_are_there_are_not_measured_again(folders, cells):
    work, results = folders
    ablate.ablate_all(work, results, CONVERSION)
    path = results / "ablations.json"
    found = json.loads(path.read_text())
    kept = found["cells"].pop("fig3/4/8")
    path.write_text(json.dumps(found))
    cells.clear()
    ablate.ablate_all(work, results, CONVERSION)
    assert [how for _, how in cells] == [Decoding(8)]
    assert json.loads(path.read_text())["cells"]["fig3/4/8"] == kept


def test_a_folder_is_trained_once_and_its_name_tells_settings_apart(tmp_path, monkeypatch):
    calls = []

    def convert(base, out, data, config):
        calls.append((base, out, data, config))
        out.mkdir(parents=True)
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(ablate, "convert", convert)
    short = replace(CONVERSION, steps=3, cosine_steps=None, cooldown_steps=0, warmup_steps=0)
    changes = [
        {}, {"steps": 4}, {"block_size": 8}, {"half_life_ratio": None}, {"views": 2},
        {"attention": "bidirectional", "views": 1, "noisy_length": None},
        {"token_shift": True, "views": 1, "noisy_length": None},
    ]  # fmt: skip
    configs = [replace(short, **change) for change in changes]
    folders = [ablate.converted(tmp_path, config) for config in configs]
    assert len(set(folders)) == len(configs)
    assert calls == [
        (tmp_path / "base", out, tmp_path / "data", config)
        for out, config in zip(folders, configs, strict=True)
    ]
    assert ablate.converted(tmp_path, configs[0]) == folders[0] and len(calls) == len(configs)


@pytest.mark.parametrize(
    ("how", "by_engine"),
    [
        (Decoding(8, 0.9), True),
        (Decoding(8, 0.9, bidirectional=True), False),
        (Decoding(8, shift=True), False),
    ],
)
def test_who_measures_and_the_standard_error(tmp_path, monkeypatch, how, by_engine):
    asked = []

    class Engine:
        def __init__(self, folder, block_length):
            asked.append((folder, block_length))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked.append("closed")

    found = {"exact": 0.8, "tpf": 1.0, "tasks": {}}
    monkeypatch.setattr(ablate, "Engine", Engine)
    monkeypatch.setattr(
        ablate, "engine_accuracy", lambda e, problems, t: dict(found, count=len(problems), t=t)
    )
    monkeypatch.setattr(
        ablate,
        "accuracy",
        lambda m, tok, problems, h: dict(found, count=len(problems), training=m.training, h=h),
    )
    folder = write_ar_checkpoint(tmp_path / "model")
    result = ablate.measured(folder, None, how)
    assert result["standard_error"] == pytest.approx(math.sqrt(0.8 * 0.2 / 300)) and result["count"] == 300
    if by_engine:
        assert asked == [(str(folder), 8), "closed"] and result["t"] == 0.9
    else:
        assert asked == [] and result["h"] == how and result["training"] is False
