"""The recipe's stages: their order, and what each is given."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))

import run


@pytest.fixture
def stages(monkeypatch):
    ran = []
    for name in list(run.STAGES):
        monkeypatch.setitem(run.STAGES, name, lambda name=name: ran.append(name))
    return ran


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--all"], ["data", "base", "convert", "evaluate", "bundle", "ablate", "report"]),
        (["report", "data"], ["data", "report"]),
    ],
)
def test_stages_run_in_order(stages, monkeypatch, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    run.main()
    assert stages == expected


@pytest.mark.parametrize("arguments", [[], ["nothing"]])
def test_one_has_to_name_stages(stages, monkeypatch, arguments, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit):
        run.main()
    assert stages == [] and "usage" in capsys.readouterr().err


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "WORK", tmp_path)
    monkeypatch.setattr(run, "tokenizer", lambda: "tokenizer")
    monkeypatch.setattr(run.quick, "reporter", lambda tokenizer, how, count=96: (tokenizer, how, count))
    return tmp_path


def test_the_base_learns_to_go_on_and_the_conversion_to_fill_in(work, monkeypatch):
    asked = []
    monkeypatch.setattr(run.base, "train_base", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(run, "convert", lambda *arguments, every: asked.append((*arguments, every)))
    run.train_base()
    watch = (200, ("tokenizer", run.AUTOREGRESSIVE, 96))
    data = work / "data" / "train.jsonl"
    assert asked.pop() == (
        work / "base",
        work / "base-run",
        data,
        work / "tokenizer",
        run.BASE_TRAINING,
        watch,
    )
    run.convert_base()
    watch = (400, ("tokenizer", run.Decoding(block=16, threshold=0.9), 48))
    assert asked.pop() == (work / "base", work / "converted", work / "data", run.CONVERSION, watch)
    (work / "converted").mkdir()
    (work / "converted" / "config.json").write_text("{}")
    run.convert_base()
    assert asked == []


def test_data_and_tokenizer_are_of_seed_0(work, monkeypatch):
    asked = []
    monkeypatch.setattr(run.base, "write_data", lambda folder, seed: asked.append((folder, seed)))
    monkeypatch.setattr(run.base, "write_tokenizer", lambda folder, seed: asked.append((folder, seed)))
    run.make_data()
    assert asked == [(work / "data", 0), (work / "tokenizer", 0)]


def test_the_settings_are_those_that_the_readme_tells():
    base, conversion = run.BASE_TRAINING, run.CONVERSION
    assert (base.rows, base.length, base.prompt_weight, base.optimizer) == (16, 256, 0.1, "muon")
    assert (base.learning_rate, base.muon_learning_rate) == (0.003, 0.02)
    assert (conversion.steps, conversion.rows, conversion.length, conversion.block_size) == (
        5000,
        16,
        128,
        16,
    )
    assert (conversion.half_life_ratio, conversion.token_shift, conversion.align_blocks) == (0.1, False, True)
    assert (conversion.noisy_length, conversion.views) == (80, 4)
    assert (conversion.learning_rate, conversion.muon_learning_rate) == (0.002, 0.02)
