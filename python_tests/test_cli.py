"""The edlm command: what it prints, and errors in one line."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import MASK, config_dict, write_ar_checkpoint, write_checkpoint

from edlm_engine import Engine, __version__
from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.checkpoints.folder import ASSETS
from edlm_engine.tools import cli

PROMPT = "w3 w14 w15"
OPTIONS = ("--dtype", "float32", "--max-new-tokens", "20")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("cli") / "checkpoint")
    (folder / "chat_template.jinja").write_text("w1 {{ messages[0].content }} w2")
    return folder


@pytest.fixture
def edlm(monkeypatch, capsys, folder):
    """Runs the command in this process on `folder`: edlm(*arguments, stdin="") -> (exit code, out, err)."""

    def run(command, *arguments, stdin=""):
        model = () if command == "info" or "--model" in arguments else ("--model", str(folder))
        monkeypatch.setattr(sys, "argv", ["edlm", command, *arguments, *model])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def expected(folder):
    with Engine(folder, dtype="float32") as engine:
        yield lambda prompt=PROMPT, **params: engine.generate(prompt, **{"max_new_tokens": 20, **params})


def test_generate(edlm, expected):
    result = expected()
    code, out, err = edlm("generate", PROMPT, *OPTIONS)
    assert (code, out) == (0, result.text + "\n")
    assert err.count("\n") == 1 and f"tokens in {result.nfe} forwards" in err
    assert err.endswith(f"tokens/s, finished by {result.finish_reason}\n")


def test_generate_passes_its_options_on(edlm, expected):
    arguments = ("--threshold", "0", "--steps-per-block", "3", "--temperature", "0.7", "--top-k", "9",
                 "--top-p", "0.8", "--seed", "5", "--stop", "w7", "--stop", "w8")  # fmt: skip
    result = expected(threshold=None, steps_per_block=3, temperature=0.7, top_k=9, top_p=0.8, seed=5,
                      stop=("w7", "w8"))  # fmt: skip
    assert edlm("generate", PROMPT, *OPTIONS, *arguments)[1] == result.text + "\n"


@pytest.mark.parametrize("options", ({"block_length": 4}, {"prefill": "causal"}))
def test_generate_passes_engine_options_on(edlm, folder, options):
    with Engine(folder, dtype="float32", **options) as engine:
        text = engine.generate(PROMPT, max_new_tokens=20).text
    flags = [word for k, v in options.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    assert edlm("generate", PROMPT, *OPTIONS, *flags)[1] == text + "\n"


def test_prompt_from_standard_input(edlm, expected):
    for stdin in (PROMPT, f"{PROMPT}\n"):
        assert edlm("generate", "-", *OPTIONS, stdin=stdin)[1] == expected().text + "\n"


def test_chat(edlm, expected):
    assert edlm("generate", PROMPT, "--chat", *OPTIONS)[1] == expected(f"w1 {PROMPT} w2").text + "\n"


def test_live_without_a_terminal_prints_every_step(edlm, expected):
    result = expected()
    code, out, _ = edlm("generate", PROMPT, "--live", "--delay", "0", *OPTIONS)
    steps = re.findall(r"^ *(\d+) \+(\d+) ", out, re.M)
    assert code == 0 and [int(number) for number, _ in steps] == list(range(1, result.forwards.denoising + 1))
    assert sum(int(count) for _, count in steps) >= len(result.token_ids)
    assert "▒▒" in out and "▒▒" not in out.splitlines()[-1] and "\x1b" not in out
    assert out.splitlines()[-1] == result.text


def test_what_is_not_given_is_the_settings_or_the_default(edlm, expected, tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text('{"sampling": {"max_new_tokens": 7, "temperature": 0.8, "seed": 3}}')
    out = edlm("generate", PROMPT, "--dtype", "float32", "--settings", str(settings))[1]
    assert out == expected(max_new_tokens=7, temperature=0.8, seed=3).text + "\n"


def test_demo(edlm, tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint")
    code, _, err = edlm("demo", "--model", str(folder))
    assert code == 1 and err.endswith("checkpoint: has no examples.json\n")
    with Engine(folder) as engine:
        text = engine.generate(PROMPT, max_new_tokens=160).text
    examples = [{"task": "[lists]", "prompt": PROMPT, "text": answer} for answer in (text, "something else")]
    (folder / "examples.json").write_text(json.dumps(examples))
    code, out, _ = edlm("demo", "--model", str(folder))
    assert code == 0 and out.count("[lists]") == 2 and out.count("▒▒") > 2
    assert out.index("\nas expected") < out.index("\nNOT the expected text")


def test_bundled_model_solves_its_examples():
    """As `edlm demo` shows them, alone and in one batch."""
    folder = ASSETS / "edlm-tiny"
    card = folder / "README.md"
    if not card.exists() or "Exact answers" not in card.read_text():
        pytest.skip("the model in the package is preliminary: its card has no accuracies")
    examples = json.loads((folder / "examples.json").read_text())
    assert examples
    with Engine("edlm-tiny", dtype="float32") as engine:
        together = engine.generate([example["prompt"] for example in examples], max_new_tokens=160)
        for example, result in zip(examples, together, strict=True):
            assert (result.text, result.finish_reason) == (example["text"], "eos")
            assert engine.generate(example["prompt"], max_new_tokens=160).token_ids == result.token_ids


def test_info(edlm):
    code, out, _ = edlm("info")
    assert code == 0
    for label in ("edlm_engine", "torch", "CPU kernels", "CUDA kernels", "default dtype", "threads"):
        assert re.search(rf"^{label} +\S", out, re.M), label


def test_info_of_a_model(edlm, folder, tmp_path):
    out = edlm("info", str(folder))[1]
    rows = (
        "heads +4 query, 2 key/value, size 16",
        "switches +QK-norm, tied head",
        "mask token id +127",
        "block length +16",
        "prefill +block_causal",
        "eos ids +126",
    )
    for row in rows:
        assert re.search(rf"^{row}$", out, re.M), row
    out = edlm("info", str(write_ar_checkpoint(tmp_path / "ar")))[1]
    assert re.search("^decoding +autoregressive$", out, re.M)


def test_info_says_how_to_give_a_missing_mask_id(edlm, tmp_path):
    folder = write_checkpoint(tmp_path / "[/b] odd [name]", config_dict(mask_token_id=None))
    out = edlm("info", str(folder))[1]
    assert "missing: give Engine(..., mask_token_id=ID)" in out
    assert str(folder) in out  # brackets in a path are no markup


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", PROMPT, "--model", "no-such-model"), "no-such-model: is no folder, no bundled model"),
        (("generate", PROMPT, "--model", "[/b] [red]x"), "[/b] [red]x: is no folder"),
        (("generate", PROMPT, "--threshold", "2"), "threshold must be in (0.0, 1.0], got 2.0"),
        (("generate", PROMPT, "--mask-token-id", "500"), "mask_token_id 500 is outside the vocabulary"),
        (
            ("generate", PROMPT, "--prefill", "x"),
            "prefill must be one of block_causal, ",
        ),
        (("generate", ""), "prompt is empty; at least one token is needed"),
        (("generate", "a\udcff"), "the prompt is no UTF-8: byte 2 is"),
        (("generate", PROMPT, "--stop", "\udcff"), "--stop is no UTF-8: byte 1 is"),
        (("generate", PROMPT, "--settings", "missing.json"), "missing.json: file is missing"),
        (("info", "\x1b[31m"), r"\x1b[31m: is no folder"),
        (("generate", PROMPT, "--max-new-tokens", "1000"), "exceed the model's 512 positions"),
        (("info", "no-such-model"), "no-such-model: is no folder"),
    ],
)
def test_errors_are_one_line(edlm, arguments, message):
    code, out, err = edlm(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantize(folder, tmp_path, monkeypatch, capsys, kind):
    arguments = ["edlm", "quantize", str(folder), str(tmp_path / kind), "--type", kind]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    assert f"MB in {kind}" in capsys.readouterr().out
    assert Checkpoint(tmp_path / kind).quantization == kind


HUB = {"revision": "v1", "token": "secret", "cache_dir": Path("cache"), "local_files_only": True}
HUB_FLAGS = ("--revision", "v1", "--token", "secret", "--cache-dir", "cache", "--local-files-only")


class Seen(ValueError):
    """What a command gave to the engine or to the hub."""


@pytest.mark.parametrize(
    "command",
    [("generate", "x", "-m"), ("demo", "-m"), ("tune",), ("bench",), ("info",), ("quantize",)],
    ids=lambda command: command[0],
)
def test_options_of_the_hub(monkeypatch, tmp_path, command):
    def engine(model, **options):
        raise Seen({name: options.get(name) for name in HUB})

    def resolve(model, hub=None):
        raise Seen(dict.fromkeys(HUB) | (hub or {}))

    monkeypatch.setattr("edlm_engine.Engine", engine)
    monkeypatch.setattr("edlm_engine.checkpoints.folder.resolve", resolve)
    monkeypatch.setattr("edlm_engine.tools.info.resolve", resolve)
    monkeypatch.setattr("edlm_engine.tools.quantize.resolve", resolve)
    monkeypatch.chdir(tmp_path)
    out = ("out",) if command[0] == "quantize" else ()
    for flags, hub in (((), dict.fromkeys(HUB)), (HUB_FLAGS, HUB)):
        with pytest.raises(Seen) as seen:
            cli.app([*command, "organisation/model", *out, *flags])
        assert seen.value.args[0] == hub


@pytest.mark.parametrize(
    ("tokens", "words"), [(1, "1 token in 1 forward ("), (2, "2 tokens in 2 forwards (")]
)
def test_plurals(edlm, tokens, words):
    arguments = ("--max-new-tokens", str(tokens), "--threshold", "0")
    assert edlm("generate", PROMPT, *arguments)[2].startswith(words)


def test_version(edlm, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["edlm", "--version"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code and capsys.readouterr().out == f"edlm_engine {__version__}\n"


COMMANDS = ("generate", "demo", "convert", "quantize", "tune", "bench", "info")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_eighty_columns(monkeypatch, capsys, command):
    monkeypatch.setenv("COLUMNS", "80")
    texts = []
    for option in ("-h", "--help"):
        monkeypatch.setattr(sys, "argv", ["edlm", *command, option])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        texts.append(capsys.readouterr().out)
        assert not exit_.value.code
    assert texts[0] == texts[1] and f"Usage: {' '.join(('edlm', *command))} [OPTIONS]" in texts[0]
    assert max(map(len, texts[0].splitlines())) <= 80 and "…" not in texts[0]


def test_as_a_module():
    command = [sys.executable, "-m", "edlm_engine", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"edlm_engine {__version__}\n", "")


def test_unknown_option(edlm):
    code, _, err = edlm("generate", PROMPT, "--tempreture", "1")
    assert code == 2 and "--temperature" in err


def test_installed_command(folder):
    """In a process of its own: quiet stderr, no escape codes, nothing but the text on stdout."""
    edlm = Path(sys.executable).with_name("edlm")
    if not edlm.exists():
        pytest.skip("the package is not installed")
    command = [edlm, "generate", "-", "-m", folder, "--max-new-tokens", "5"]
    done = subprocess.run(command, input=PROMPT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"w{MASK}" not in done.stdout
    assert done.stdout.count("\n") == 1 and done.stderr.count("\n") == 1 and "\x1b" not in done.stderr
