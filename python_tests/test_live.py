"""edlm_engine.tools.live: pictures and lines of a text that appears."""

import io
import re
import sys

import pytest
from rich.console import Console

from edlm_engine.outputs import Chunk, Forwards, Generation
from edlm_engine.tools.live import Canvas, Look, print_text, show_live


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8; 256 is <end>."""

    vocab_size, special, byte_ids, longest_piece = 257, {256: "<end>"}, frozenset(), 5

    def decode(self, token_ids):
        return bytes(i for i in token_ids if i < 256).decode(errors="replace")


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self):
        return True

    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def generation(text: str, end=True) -> Generation:
    ids = [*text.encode(), *([256] if end else [])]
    floats = [0.5] * len(ids)
    return Generation(text, ids, [1], "eos", floats, floats, [0] * len(ids), 1, 1.0, 1.0, Forwards())


def chunk(text: str, at=0, block=8, confidence=0.99, final=None) -> Chunk:
    ids = list(text.encode()) + ([256] if final else [])
    positions = list(range(at, at + len(ids)))
    return Chunk(positions, ids, [confidence] * len(ids), range(block), "", final)


def unstyled(shown: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*\w", "", shown)


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard output a terminal of so many columns and lines."""

    def make(encoding="utf-8", term="xterm-256color", columns=80, lines=24, **variables) -> Terminal:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": term, "COLUMNS": columns, "LINES": lines, **variables}.items():
            monkeypatch.setenv(name, str(value))
        stream = Terminal(encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return make


def look(stream, **options) -> Look:
    return Look(Console(file=stream, **options))


def test_characters_whole_specials_dim_and_the_end_the_text():
    canvas = Canvas("", Bytes(), look(Terminal()))
    canvas.update(Chunk([0, 1, 4, 7], [*"é".encode(), 0xE2, 256], [0.99, 0.7, 0.99, 0.5], range(8), ""))
    text = canvas.render()
    assert text.plain == "é▒▒▒▒�▒▒▒▒<end>"  # a character whose bytes have not all come is one sign
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles["é"] == "yellow" and styles["<end>"] == "dim" and styles["▒▒"] == "bright_black"
    canvas.update(Chunk([2, 3], list(b"ab"), [0.99, 0.99], range(8), "", generation("éa")))
    assert canvas.render().plain == "éa"  # a stop string has cut the rest


def test_lines_where_there_is_no_terminal(capsys):
    chunks = [chunk("a\n"), chunk("\x1b[b]", at=2, final=generation("a\n\x1b[b]"))]
    assert show_live("[bold]", chunks, Bytes(), 0) is chunks[-1].generation
    steps, text = capsys.readouterr().out.split("<end>\n")
    assert steps == "  1 +2  a↵▒▒▒▒▒▒▒▒▒▒▒▒\n  2 +5  a↵\\x1b[b]"
    assert text == "a\n\x1b[b]\n"  # what a program reads is as it is, brackets are no markup


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(terminal):
    stream = terminal(term="dumb")
    show_live("x", [chunk("ab", final=generation("ab"))], Bytes(), 0)
    assert stream.shown() == "  1 +3  ab<end>\nab\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_other_encodings(terminal, encoding):
    stream = terminal(encoding, COLUMNS=40)
    show_live("größe\x07 ", [chunk("✓"), chunk("", 3, final=generation("✓"))], Bytes(), 0)
    shown = unstyled(stream.shown())
    assert ">=0.99" in shown and "<0.6" in shown and "\\u2713____" in shown
    assert ("größe" if encoding == "latin-1" else "gr\\xf6\\xdfe") + "\\x07 " in shown


def test_colours_or_other_signs_of_doubt(terminal):
    stream = terminal()
    assert [style for _, style in look(stream).levels] == [
        "bright_cyan", "bright_green", "yellow", "bright_red",
    ]  # fmt: skip
    plain = look(stream, no_color=True)
    assert plain.legend().plain == "confidence when committed:  ≥0.9  ≥0.6  <0.6"
    assert [plain.style(c) for c in (0.99, 0.9, 0.7, 0.1)] == ["", "", "underline", "bold underline"]
    stream = terminal(NO_COLOR=1)
    show_live("x", [chunk("ab", confidence=0.1, final=generation("ab"))], Bytes(), 0)
    assert "\x1b[1;4ma\x1b[0m" in stream.shown() and not re.search(r"\x1b\[[\d;]*\b[39]\dm", stream.shown())


def test_a_long_text_shows_where_things_happen(terminal):
    stream = terminal(lines=6)
    text = "\n".join(f"line {i}" for i in range(40))
    show_live("x", [chunk(text[:200], block=200), chunk(text[200:], 200, final=generation(text))], Bytes(), 0)
    first, *_, last = map(unstyled, stream.shown().split("\x1b[2K"))
    assert "line 24\nline 25\nli" in first and "line 20" not in first and "…" not in first
    assert text in last  # all of it in the end


def test_text_for_terminals_and_programs(terminal, capsys):
    print_text("a\x1b[2Jb")
    assert capsys.readouterr().out == "a\x1b[2Jb\n"
    stream = terminal()
    print_text("a\x1b[2Jb")
    assert stream.shown() == "a\\x1b[2Jb\n"
