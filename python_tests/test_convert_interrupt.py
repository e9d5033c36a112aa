"""Ctrl-C: once to stop between two steps, twice to stop at once."""

import os
import signal
import threading

import pytest

from edlm_engine.convert.interrupt import Interrupt

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Acts as on a terminal; a shell's background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_one_is_a_request_and_the_second_acts_as_ever(capsys):
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        press()
        assert interrupt.asked
        assert "finishing this step, then saving" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_old_handler_comes_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), Interrupt():
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGINT) is before


def test_whoever_ignores_the_signal_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            press()
        assert not interrupt.asked and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone():
    found = []

    def body():
        with Interrupt() as interrupt:
            found.append((interrupt.asked, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGINT))]
