"""edlm_engine.printing: what terminals get to see."""

import io

import pytest

from edlm_engine.printing import can_show, count, is_terminal, one_line, printable


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def test_control_characters_are_escaped():
    assert printable("a\x1b[31mb\x07\x9b2J\x7f\rc") == r"a\x1b[31mb\x07\x9b2J\x7f\x0dc"
    assert printable("größe\t▒\n🙂\r\n") == "größe\t▒\n🙂\n"


def test_what_an_encoding_lacks_is_escaped():
    assert printable("größe ▒", stream("ascii")) == r"gr\xf6\xdfe \u2592"
    assert printable("größe ▒", stream("latin-1")) == r"größe \u2592"
    assert printable("größe ▒ \udcff", stream("utf-8")) == r"größe ▒ \udcff"
    assert [can_show("▒", stream(e)) for e in ("utf-8", "latin-1", "ascii")] == [True, False, False]
    assert can_show("▒", object())  # what does not say takes all


def test_long_messages_lose_their_middle():
    assert one_line("short\n\tlines") == r"short\n\tlines"
    text = one_line("begin " + "x" * 10_000_000 + " end", 100)
    assert len(text) < 160 and text.startswith("begin xx") and text.endswith("xx end")
    assert "[... 9,999,915 characters ...]" in text


def test_plurals():
    assert [count(n, "forward") for n in (0, 1, 2, 1234)] == [
        "0 forwards", "1 forward", "2 forwards", "1,234 forwards",
    ]  # fmt: skip


class Broken:
    def isatty(self):
        raise OSError("gone")


@pytest.mark.parametrize("odd", [None, object(), Broken(), io.StringIO()])
def test_only_terminals_are_terminals(odd):
    assert not is_terminal(odd)
    closed = io.StringIO()
    closed.close()
    assert not is_terminal(closed)


def test_a_terminal_is_one():
    assert is_terminal(type("Terminal", (), {"isatty": lambda self: True})())
