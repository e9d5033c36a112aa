"""edlm_engine.tools.terminal: prompts that come in, lines that go out, and how a command ends."""

import io
import os
import subprocess
import sys

import pytest

from edlm_engine.tools.terminal import read_prompt, run_command, unicode_argument


def pipe(data: bytes, encoding="utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding=encoding)


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        (b"A: ", "utf-8", "A: "),
        (b"A: \n", "utf-8", "A: "),
        (b"A: \n\n", "utf-8", "A: \n"),  # one line end is echo's, others are the prompt's
        (b"Q\r\nA: \r\n", "utf-8", "Q\nA: "),
        (b"\xef\xbb\xbfA", "utf-8", "A"),
        ("größe".encode(), "ascii", "größe"),  # a locale without a language
        ("größe".encode("latin-1"), "latin-1", "größe"),
        (b"\n", "utf-8", ""),
    ],
)
def test_standard_input(monkeypatch, data, encoding, text):
    monkeypatch.setattr(sys, "stdin", pipe(data, encoding))
    assert read_prompt("-") == text


def test_standard_input_that_is_no_text(monkeypatch):
    monkeypatch.setattr(sys, "stdin", pipe(b"ab\xff\n"))
    with pytest.raises(ValueError, match="standard input is no UTF-8: byte 3 is 0xff; convert it first"):
        read_prompt("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed; give the prompt as an argument"):
        read_prompt("-")


def test_arguments():
    assert read_prompt("a\n") == "a\n"
    assert unicode_argument("x", os.fsdecode("größe".encode())) == "größe"
    escaped = "gr\udcc3\udcb6\udcc3\udc9fe"  # as Python reads it in a locale that has ASCII only
    assert unicode_argument("x", escaped) == "größe"
    with pytest.raises(ValueError, match="the prompt is no UTF-8: byte 2 is "):
        read_prompt("a\udcff")


def ended(command, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        run_command(command)
    return end.value.code, capsys.readouterr().err


def raising(error):
    def command():
        raise error

    return command


def test_how_commands_end(capsys):
    assert ended(lambda: None, capsys) == (0, "")
    assert ended(raising(SystemExit(2)), capsys) == (2, "")
    assert ended(raising(KeyboardInterrupt()), capsys) == (130, "")
    assert ended(raising(BrokenPipeError(32, "Broken pipe")), capsys) == (1, "")
    assert ended(raising(ValueError("[b] \x1b[31m\nx")), capsys) == (1, "error: [b] \\x1b[31m\\nx\n")
    assert ended(raising(FileNotFoundError(2, "No such file", "x.txt")), capsys) == (
        1, "error: x.txt: No such file\n",
    )  # fmt: skip
    code, err = ended(raising(ValueError("x" * 10_000_000)), capsys)
    assert code == 1 and len(err) < 1100


@pytest.mark.parametrize("stderr", [None, type("Logger", (), {"write": lambda self, text: None})()])
def test_an_error_that_nobody_can_read(monkeypatch, capsys, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(SystemExit) as end:
        run_command(raising(ValueError("x")))
    assert end.value.code == 1


def test_a_disk_that_is_full(capsys, monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert ended(lambda: None, capsys) == (1, "error: standard output: No space left on device\n")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_in_a_process_whose_reader_goes(encoding):
    """Nothing is said, not by Python's own flush at the end either; what the encoding lacks is escaped."""
    code = """
from edlm_engine.tools.terminal import run_command
def command():
    print("\u2592", flush=True)
    input()
    for _ in range(100_000):
        print("more")
run_command(command)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert process.stdout.readline() == ("\\u2592\n" if encoding == "ascii" else "▒\n").encode()
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr.read() == b"" and process.wait() == 1
    process.stderr.close()
