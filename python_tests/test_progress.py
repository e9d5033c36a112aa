"""edlm_engine.progress: bars on any standard error, or none."""

import io
import sys
from concurrent.futures import Future

import pytest

from edlm_engine.progress import progress_bar, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stderr", [None, type("Logger", (), {"write": print})(), io.StringIO()])
def test_no_terminal_no_bar(monkeypatch, capsys, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar("loading", 2) as tick:
        tick()
    done = Future()
    done.set_result(1)
    assert list(track([done], enabled=True)) == [done]
    assert not stderr or not getattr(stderr, "getvalue", str)()
    assert capsys.readouterr().out == ""


def test_a_name_is_no_markup_and_no_control(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("loading [/b] \x1b]0;title\x07", 1) as tick:
        tick()
    shown = sys.stderr.getvalue()
    assert r"loading [/b] \x1b]0;title\x07" in shown and "\x1b]0;" not in shown
