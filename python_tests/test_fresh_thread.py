"""Work on a new thread: what the caller's thread has set stays behind, its GPU comes along."""

import threading

import pytest
import torch

from edlm_engine.hardware.fresh_thread import on_fresh_thread


def test_result_and_exception_come_back():
    assert on_fresh_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        on_fresh_thread(divmod, 7, 0)
    with pytest.raises(SystemExit, match="5"):
        on_fresh_thread(exit, 5)


def test_the_thread_is_new():
    seen = [on_fresh_thread(threading.current_thread) for _ in range(2)]
    assert len({threading.current_thread(), *seen}) == 3


def test_settings_of_the_callers_thread_stay_there():
    def settings():
        return torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_device()

    here = torch.device("meta")
    with torch.inference_mode(), torch.autocast("cpu"), here:
        assert settings() == (True, True, here)
        assert on_fresh_thread(settings) == (False, False, torch.device("cpu"))


@pytest.mark.parametrize("initialized", (False, True))
def test_gpu_of_the_callers_thread(monkeypatch, initialized):
    """A thread begins with the first GPU, whatever its maker has chosen."""
    chosen = threading.local()
    chosen.gpu = 1
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(chosen, "gpu", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: setattr(chosen, "gpu", gpu))
    assert on_fresh_thread(lambda: torch.cuda.current_device()) == int(initialized)
