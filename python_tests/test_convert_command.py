"""edlm convert as a process: options, one-line errors, Ctrl-C and going on."""

import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from convert_tools import write_base, write_data

from edlm_engine import convert as package
from edlm_engine.convert import ConversionConfig
from edlm_engine.tools import cli

pytestmark = pytest.mark.timeout(120)
QUICK = ("--steps", "2", "--rows", "2", "--length", "12", "--block-length", "4", "--device", "cpu")
CONFIG = ConversionConfig(  # what these options are
    steps=2, rows=2, length=12, block_size=4, device="cpu", final_learning_rate=1e-5 / 10
)


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # the matrices are too small to share, and waiting threads slow other tests down


@pytest.fixture
def folders(tmp_path):
    return write_base(tmp_path / "base"), tmp_path / "out", write_data(tmp_path / "data.jsonl")


@pytest.fixture
def edlm(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["edlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


def test_it_says_what_it_does_and_what_came_of_it(edlm, folders):
    base, out, data = folders
    code, said, err = edlm("convert", base, out, data, *QUICK, "--dtype", "float32")
    assert (code, err) == (0, "") and (out / "config.json").exists()
    lines = said.splitlines()
    mask = "mask token: '<|mask|>' (id 1)"
    assert lines[0] == f"documents: 21, tokens: 162, {mask}, steps: 2 of 2 x 12 tokens, fp32 on cpu"
    assert [line.split("  ")[0] for line in lines[1:3]] == ["conversion step 1/2", "conversion step 2/2"]
    assert lines[3] == f"{out}: a block-diffusion checkpoint; try: edlm generate -m {out} PROMPT"
    code, said, err = edlm("convert", base, out, data, *QUICK)
    assert (code, said) == (1, "") and err.startswith("error: ") and "already holds a checkpoint" in err


def test_options_reach_the_conversion(edlm, folders, monkeypatch):
    base, out, data = folders
    seen = []
    monkeypatch.setattr(package, "convert", lambda *arguments, hub: seen.append((*arguments, hub)))
    code, said, _ = edlm(
        "convert", base, out, data, *QUICK, "--learning-rate", "0.5", "--half-life-ratio", "0.25",
        "--mask-token-id", "7", "--seed", "3", "--dtype", "bfloat16", "--revision", "main",
    )  # fmt: skip
    assert (code, said) == (0, "")  # not finished: no success is printed
    assert seen[0][:3] == (str(base), out, data) and seen[0][4] == {"revision": "main"}
    config = seen[0][3]
    assert (config.steps, config.rows, config.length, config.block_size, config.device) == (
        2,
        2,
        12,
        4,
        "cpu",
    )
    assert (config.learning_rate, config.final_learning_rate) == (0.5, 0.05)
    assert (config.half_life_ratio, config.mask_token_id, config.seed, config.bf16) == (0.25, 7, 3, True)
    edlm("convert", base, out, data, "--half-life-ratio", "0", "--dtype", "float32")
    edlm("convert", base, out, data)
    assert seen[2][3] == ConversionConfig(final_learning_rate=1e-5 / 10)
    assert (seen[1][3].half_life_ratio, seen[1][3].bf16, seen[2][3].bf16) == (None, False, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "float16"), "dtype must be one of auto, bfloat16, float32, got 'float16'"),
        (("--block-length", "13"), "block_size must be in 1 … length (12), got 13"),
        (("--learning-rate", "1e30"), "training diverged: "),
        (("--device", "gpu"), "device must be auto, cpu or cuda, got 'gpu'"),
    ],
)
def test_errors_are_a_sentence(edlm, folders, arguments, message):
    base, out, data = folders
    code, said, err = edlm("convert", base, out, data, *QUICK, *arguments)
    assert code == 1 and message in err and err.count("\n") == 1 and "edlm generate" not in said
    assert not (out / "config.json").exists()


def process(*arguments):
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # as on a terminal
    code = f"{handler}; from edlm_engine.tools.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_ctrl_c_saves_and_the_same_command_goes_on(folders, capsys):
    base, out, data = folders
    child = process("convert", base, out, data, "--steps", "100000", *QUICK[2:])
    while "conversion step 1/" not in child.stdout.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    said, err = child.communicate()
    assert child.returncode == 130, err
    assert said.endswith("; the same command goes on from there\n") and "edlm generate" not in said
    assert "finishing this step, then saving" in err and "Traceback" not in err
    step = torch.load(out / "resume.pt", weights_only=True)["step"]
    assert f"resume.pt: holds the run after step {step};" in said and step >= 1
    config = replace(CONFIG, steps=100_000)
    assert not package.convert(base, out, data, config, stop_after=step + 1)
    assert f"conversion step {step + 1}/100000" in capsys.readouterr().out


@pytest.mark.parametrize("saved", [False, True])
def test_a_stop_at_once_says_what_there_is(edlm, folders, monkeypatch, saved):
    base, out, data = folders
    if saved:
        out.mkdir()
        (out / "resume.pt").write_text("")

    def stop(*_, hub):
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "convert", stop)
    code, said, _ = edlm("convert", base, out, data)
    assert code == 130
    going_on = (
        f"{out / 'resume.pt'}: holds the run as it was last saved; the same command goes on from there\n"
    )
    assert said == (going_on if saved else "stopped; nothing was saved yet\n")
