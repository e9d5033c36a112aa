"""edlm tune and edlm bench: what is measured, chosen, shown, kept, and taken back by an engine."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from checkpoints import config_dict, write_ar_checkpoint, write_checkpoint
from rich.console import Console

from edlm_engine import Engine, SamplingParams
from edlm_engine.policies import EntropyBound, Schedule, Threshold
from edlm_engine.settings import load_settings, save_settings
from edlm_engine.tools.cli import app
from edlm_engine.tools.metering import step_times
from edlm_engine.tools.tune import (
    Setting,
    Tuning,
    agreement,
    block_lengths,
    candidates,
    read_prompts,
    steps_of,
    tune,
)
from edlm_engine.tools.tune_report import print_tables

PROMPTS = ["w3 w14 w15", "w92 w65"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tune") / "checkpoint", config_dict(block_size=12))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("edlm_engine.tools.tune.ENOUGH_S", 0.0)
    monkeypatch.setattr(
        "edlm_engine.tools.tune.step_times", lambda *a: step_times(*a, seconds=0.0, at_least=1)
    )


def edlm(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        app([str(argument) for argument in arguments])
    return end.value.code or 0


def test_block_lengths():
    assert block_lengths(32) == [4, 8, 16, 32]
    assert block_lengths(12) == [4, 8, 12]
    assert block_lengths(4) == [4]
    assert block_lengths(3) == [3]


def test_agreement():
    def texts(*ids):
        return [SimpleNamespace(token_ids=list(i)) for i in ids]

    assert agreement(texts([1, 2, 3]), texts([1, 2, 3])) == 1
    assert agreement(texts([1, 2, 3], [9]), texts([1, 5], [9])) == 2 / 4
    assert agreement(texts([1]), texts([2])) == 0


def test_every_setting_is_what_an_engine_of_that_block_length_does(folder, quick):
    calls, tried = [], [*candidates("threshold:0.5,0.99"), EntropyBound(0.3)]
    with Engine(folder, dtype="float32") as engine:
        found = tune(engine, PROMPTS, max_new_tokens=30, policies=tried, tick=lambda: calls.append(1))
        assert len(calls) == steps_of(engine, tried)
        expected = engine.generate(PROMPTS, max_new_tokens=30, threshold=None)
    assert list(found.step_seconds) == [1, 2, 4, 8, 12]
    assert [(s.block_length, s.policy) for s in found.settings] == [
        (b, p) for b in (4, 8, 12) for p in ("threshold:0.5", "threshold:0.99", "entropy_bound:0.3")
    ]
    assert found.reference.agreement == 1
    for setting in found.settings:
        with Engine(folder, dtype="float32", block_length=setting.block_length) as engine:
            results = engine.generate(PROMPTS, max_new_tokens=30, policy=setting.policy)
        assert setting.agreement == agreement(results, expected)
        tokens, nfe = sum(len(r.token_ids) for r in results), sum(r.nfe for r in results)
        assert setting.tokens_per_forward == tokens / nfe


def test_candidates():
    assert candidates("threshold") == [Threshold(value) for value in Threshold.to_tune]
    assert candidates("schedule:3,6") == [Schedule(3), Schedule(6)]
    for text, message in (("nothing", "no such policy; known: "), ("factor:much", "could not convert")):
        with pytest.raises(ValueError, match=f"policy '{text}': {message}"):
            candidates(text)
    with pytest.raises(ValueError, match="policy 'margin:2': threshold must be in"):
        candidates("margin:2")


def test_command_compares_policies(folder, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("w3 w14 w15\n")
    options = ("--policy", "threshold:0.9", "--policy", "entropy_bound:0.1,0.3", "--plot", "tune.png")
    assert edlm("tune", folder, "--prompts", "prompts.txt", "--max-new-tokens", 20, *options) == 0
    assert "entropy_bound:0.1" in capsys.readouterr().out
    saved = json.loads((tmp_path / "edlm_settings.json").read_text())
    assert [s["policy"] for s in saved["measured"]["settings"][:3]] == [
        "threshold:0.9", "entropy_bound:0.1", "entropy_bound:0.3",
    ]  # fmt: skip
    assert edlm("generate", PROMPTS[0], "-m", folder, "--policy", "factor:1") == 0


@pytest.mark.parametrize("loss", [0.0, 0.3, 1.0])
def test_the_fastest_within_the_loss_is_chosen(folder, quick, loss):
    with Engine(folder, dtype="float32") as engine:
        found = tune(engine, PROMPTS, loss=loss, max_new_tokens=30)
    allowed = [s for s in found.settings if s.agreement >= 1 - loss] or [found.reference]
    assert found.best in allowed
    assert all(found.best.tokens_per_second >= s.tokens_per_second for s in allowed)


def test_command(folder, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "w3 w14 w15"}\n"w92 w65"\n')
    assert edlm("tune", folder, "--prompts", prompts, "--max-new-tokens", 20, "--plot", "tune.png") == 0
    out = capsys.readouterr().out
    assert "block length" in out and "one token per step" in out
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "edlm_settings.json").read_text())
    assert saved["sampling"].keys() == {"block_length", "policy"}
    assert len(saved["measured"]["settings"]) == 3 * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "edlm_settings.json", "prompts.jsonl", "tune.png",
    ]  # fmt: skip
    assert edlm("generate", PROMPTS[0], "-m", folder, "--settings", "edlm_settings.json") == 0
    with Engine(folder, settings="edlm_settings.json") as engine:
        assert engine.default_params == SamplingParams(**saved["sampling"])


def test_settings_are_defaults_and_no_more(folder):
    settings = {"sampling": {"block_length": 4, "threshold": None}}
    with (
        Engine(folder, dtype="float32", settings=settings) as engine,
        Engine(folder, dtype="float32") as plain,
    ):
        ids = [3, 14, 15]
        fixed = engine.generate(ids, max_new_tokens=20, ignore_eos=True)
        assert fixed.nfe == 20
        assert fixed.token_ids == plain.generate(
            ids, max_new_tokens=20, ignore_eos=True, threshold=None, block_length=4
        ).token_ids  # fmt: skip
        given = SamplingParams(max_new_tokens=20, threshold=0.5)
        assert engine.generate(ids, given).token_ids == plain.generate(ids, given).token_ids


def test_a_request_has_a_block_length_of_its_own(folder):
    """Beside others in a batch it gives what an engine of that block length gives."""
    prompts = [[3 + i, 14, 15, 92, 65][: 2 + i] for i in range(4)]
    lengths = [4, None, 7, 12]
    params = [
        SamplingParams(max_new_tokens=33, threshold=0.6, block_length=b, ignore_eos=True) for b in lengths
    ]
    with Engine(folder, dtype="float32") as engine:
        together = engine.generate(prompts, params)
    for prompt, length, result in zip(prompts, lengths, together, strict=True):
        with Engine(folder, dtype="float32", block_length=length) as engine:
            alone = engine.generate(prompt, max_new_tokens=33, threshold=0.6, ignore_eos=True)
        assert result.token_ids == alone.token_ids
        assert result.commit_steps == alone.commit_steps


def test_block_lengths_that_cannot_be(folder, tmp_path):
    with Engine(folder) as engine:
        with pytest.raises(ValueError, match="block_length=13 exceeds the engine's 12"):
            engine.generate([1], block_length=13)
        with pytest.raises(ValueError, match="block_length must be in"):
            engine.generate([1], block_length=0)
    with pytest.raises(ValueError, match="block_length=13 exceeds the engine's 12"):
        Engine(folder, settings={"sampling": {"block_length": 13}})
    base = write_ar_checkpoint(tmp_path / "base")
    with Engine(base) as engine, pytest.raises(ValueError, match="is autoregressive, without blocks"):
        engine.generate([1], block_length=1)
    with Engine(base) as engine, pytest.raises(ValueError, match="no block length to tune"):
        tune(engine, PROMPTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "settings.json: file is missing"),
        ("{", "settings.json: no valid JSON"),
        ("[]", "settings.json: key 'sampling' must hold an object"),
        ('{"sampling": 3}', "settings.json: key 'sampling' must hold an object"),
        ('{"sampling": {"treshold": 1}}', "settings.json: unknown key 'treshold'"),
        ('{"sampling": {"threshold": 7}}', "settings.json: threshold must be in"),
        ("[" * 100_000, "settings.json: no valid JSON"),
        ("9" * 5000, "settings.json: no valid JSON"),
    ],
)
def test_bad_settings(tmp_path, text, message):
    path = tmp_path / "settings.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_settings(path)


def test_what_is_no_settings_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        load_settings(tmp_path)
    (tmp_path / "s.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"s\.json: no valid JSON"):
        load_settings(tmp_path / "s.json")
    with pytest.raises(TypeError, match="settings must be the path of a file or a dict, got 5"):
        load_settings(5)


def test_settings_come_back(tmp_path):
    save_settings(tmp_path / "s.json", {"threshold": 0.8}, model="x")
    assert load_settings(str(tmp_path / "s.json")) == SamplingParams(threshold=0.8)
    assert load_settings({"sampling": {}}) == SamplingParams()


def test_prompt_files(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has no examples\.json; give prompts of your own"):
        read_prompts(None, folder)
    text = tmp_path / "prompts.txt"
    text.write_bytes("\ufeffone\u2028still one\n\r\ntwo\x0ctwo\x85\r\n".encode())
    assert read_prompts(text, folder) == ["one\u2028still one", "two\x0ctwo\x85"]
    text.write_text("\n")
    with pytest.raises(ValueError, match=r"prompts\.txt: holds no prompt"):
        read_prompts(text, folder)
    text.write_bytes(b"fine\nnot \xff\n")
    with pytest.raises(ValueError, match=r"prompts\.txt:2: byte 5 of the line is 0xff, which is no UTF-8"):
        read_prompts(text, folder)


def test_json_lines_of_prompts(folder, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n\n"c\x85"\n'.encode())
    assert read_prompts(lines, folder) == ["a\u2028b", "c\x85"]
    for line, message in (
        ("{", "no valid JSON"),
        ('{"text": "x"}', "must be a string or an object with"),
        ('{"prompt": ""}', "must be a string or an object with"),
        ("[1]", r"must be a string or an object with .*, is \[1\]"),
    ):
        lines.write_text(f'"fine"\n\n{line}\n')
        with pytest.raises(ValueError, match=rf"prompts\.jsonl:3: {message}"):
            read_prompts(lines, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no example"),
        ([{"prompt": "x"}, {}], r"\[1\]\['prompt'\] must be a text, is None"),
        ([{"prompt": 3}], r"\[0\]\['prompt'\] must be a text, is 3"),
        (["x"], r"\[0\] must be an object, is 'x'"),
        ({"prompt": "x"}, "must hold a list"),
    ],
)
def test_examples_that_are_none(tmp_path, content, message):
    (tmp_path / "examples.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"examples\.json: {message}"):
        read_prompts(None, tmp_path)


def test_what_cannot_be_tuned_is_known_before_it_is_measured(folder, quick, monkeypatch):
    class Mine(Threshold):
        pass

    with Engine(folder, dtype="float32") as engine:
        with pytest.raises(ValueError, match=r"Mine.* has no text form"):
            tune(engine, PROMPTS, policies=[Threshold(0.9), Mine(0.5)])
        with pytest.raises(ValueError, match=r"loss must be in \[0, 1\], got nan"):
            tune(engine, PROMPTS, loss=float("nan"))
        ticks = []
        with pytest.raises(ValueError, match=r"prompt\[1\]: .* exceed the model's 512 positions"):
            tune(engine, ["w1", "w2 " * 500], tick=lambda: ticks.append(1))
        assert len(ticks) == 1  # of the times of steps, which need no prompt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tune", "--output", "missing/s.json"), r"missing/s\.json: there is no folder"),
        (("tune", "--output", "."), r"\.: is a folder"),
        (("tune", "--plot", "missing/p.png"), r"missing/p\.png: there is no folder"),
        (("tune", "--plot", "p.xyz"), r"p\.xyz: the suffix of a plot must be one of .*\.png"),
        (("tune", "--plot", "p"), r"p: the suffix of a plot must be"),
        (("tune", "--plot", "x.png", "--output", "./x.png"), "--output and --plot are the same file"),
        (("tune", "--prompts", "missing.jsonl"), r"missing\.jsonl"),
        (("tune", "--policy", "nothing"), "policy 'nothing': no such policy"),
        (("bench", "--json", "missing/b.json"), r"missing/b\.json: there is no folder"),
    ],
)
def test_outputs_are_tried_before_the_work(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edlm_engine.Engine", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises((ValueError, OSError), match=message):
        app([arguments[0], str(folder), *arguments[1:]])
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_no_plot_is_begun(folder, monkeypatch):
    monkeypatch.setattr("edlm_engine.Engine", lambda *a, **k: pytest.fail("the model was loaded"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"p\.png: the plot needs matplotlib: pip install matplotlib"):
        app(["tune", str(folder), "--plot", "p.png"])


@pytest.mark.parametrize("stepping", ["eager", "direct"])
def test_bench_command(folder, tmp_path, monkeypatch, capsys, stepping):
    monkeypatch.setattr(
        "edlm_engine.tools.bench_report.step_times", lambda *a: step_times(*a, seconds=0.0, at_least=1)
    )
    file = tmp_path / "bench.json"
    arguments = ("--prefix", 9, "--steps", 3, "--max-new-tokens", 24, "--stepping", stepping, "--json", file)
    assert edlm("bench", folder, *arguments) == 0
    printed = capsys.readouterr().out
    assert "tokens per forward" in printed and "launches" not in printed
    found = json.loads(file.read_text())
    assert list(found["step_ms"]) == ["1", "2", "4", "8", "12"]
    assert found["generation"]["tokens_per_forward"] == 24 / 6 and found["generation"]["steps"] == 6
    assert found["engine"]["stepping"] == stepping
    assert (tmp_path / "bench.json.partial").exists() is False
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(config_dict()))
    assert edlm("bench", tmp_path / "shape", "--dummy", "--quantization", "int8", *arguments) == 0
    with (
        Engine(write_ar_checkpoint(tmp_path / "base")) as engine,
        pytest.raises(ValueError, match="autoregres"),
    ):
        from edlm_engine.tools.bench_report import measure

        measure(engine, 3, 2, 4)


@pytest.mark.parametrize("width", [40, 80])
def test_tables_lose_nothing_on_narrow_terminals(width):
    setting = Setting(16, "threshold:0.9,max_steps=4", 7.114, 1341.0, 1.0)
    console = Console(file=io.StringIO(), width=width)
    print_tables(console, Tuning({1: 0.00024, 16: 0.0005}, setting, [setting], setting, 0.01))
    printed = console.file.getvalue()
    cells = [line.split("│")[1:-1] for line in printed.splitlines() if line.count("│") == 6]
    columns = ["".join(part.strip() for part in column) for column in zip(*cells, strict=True)]
    assert columns == ["16" * 2, "threshold:0.9,max_steps=4" * 2, "7.11" * 2, "1341" * 2, "100.0%" * 2]
    assert "…" not in printed


def test_bench_shows_the_figures_that_there_are():
    from edlm_engine.tools import bench_report

    figures = {
        "ms_per_step": 4.5,
        "ms_per_forward": None,
        "launches_per_step": 1.3,
        "outside_kernels_share": 0.07,
    }
    console = Console(file=io.StringIO(), width=100)
    bench_report.print_tables(console, {"engine": {"model": "x"}, "step_ms": {1: 2.0}, "generation": figures})
    printed = console.file.getvalue()
    assert "launches per step" in printed and "1.3" in printed and "7.0%" in printed
    assert "ms per forward" not in printed and "tokens/s" not in printed
