"""What a training run prints, by the clock."""

import sys

import pytest

from edlm_engine.convert import reporter
from edlm_engine.convert.config import TrainConfig
from edlm_engine.convert.reporter import Reporter

CONFIG = TrainConfig(steps=40, rows=5, length=20)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(reporter, "time", clock)
    return clock


def run(clock, seconds, first=0, steps=40):
    report = Reporter("training", first, CONFIG)
    with report:
        for step in range(first + 1, steps + 1):
            clock.now += seconds
            report(step, float(step))


def test_lines_come_after_the_first_step_then_by_time_and_at_the_end(clock, capsys):
    run(clock, 3.0)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[2].split("/")[0]) for line in lines] == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 40]
    assert lines[0] == "training step 1/40  loss 1.0000  33 tokens/s  3 s, about 117 s left"
    assert lines[1] == "training step 5/40  loss 3.5000  33 tokens/s  15 s, about 105 s left"
    assert lines[-1] == "training step 40/40  loss 39.0000  33 tokens/s  120 s, about 0 s left"


def test_slow_steps_each_have_their_line(clock, capsys):
    run(clock, 10.0, steps=4)
    assert capsys.readouterr().out.count("\n") == 4


def test_a_resumed_run_begins_with_a_line_and_its_own_time(clock, capsys):
    run(clock, 2.0, first=30, steps=33)
    assert capsys.readouterr().out == "training step 31/40  loss 31.0000  50 tokens/s  2 s, about 18 s left\n"


@pytest.mark.parametrize(("seconds", "rate"), [(0.5, "200"), (0.0, "100,000,000,000")])
def test_steps_may_take_no_time_at_all(clock, capsys, seconds, rate):
    run(clock, seconds, steps=1)
    assert f"loss 1.0000  {rate} tokens/s" in capsys.readouterr().out


def on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_bar_moves_twice_a_second(clock, capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    report, shown = Reporter("training", 0, CONFIG), []
    with report:
        for step in range(1, 8):
            clock.now += 0.25
            report(step, 1.0)
            shown.append(report.bar.tasks[0].completed)
    assert shown == [1, 1, 3, 3, 5, 5, 7]


def test_a_terminal_has_a_bar_instead(clock, capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    run(clock, 3.0)
    out = capsys.readouterr().out
    assert "training step" not in out and "40/40" in out and "loss 40.0000" in out


def test_a_stream_that_knows_nothing_of_terminals_gets_lines(clock, monkeypatch):
    written, flushed = [], []

    class Stream:
        def write(self, text):
            written.append(text)

        def flush(self):
            flushed.append(len(written))

    monkeypatch.setattr(sys, "stdout", Stream())
    run(clock, 3.0)
    assert "".join(written).count("training step") == 11
    assert len(flushed) >= 11 and flushed[-1] == len(written)  # a pipe shows each line at once
    monkeypatch.setattr(sys, "stdout", None)  # a process without one
    run(clock, 3.0)
