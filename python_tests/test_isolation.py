"""An engine and its host program: neither minds what the other has set."""

import subprocess
import sys
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from checkpoints import config_dict
from torch.overrides import TorchFunctionMode

from edlm_engine import Engine
from edlm_engine.models.families import read_config
from edlm_engine.rope import Rope, YarnScaling
from edlm_engine.steps.kv_cache import PagedKVCache
from edlm_engine.steps.policies import Factor

pytestmark = pytest.mark.timeout(120)
PROMPT = "Q: Sort [31, 4, 15] in ascending order.\nA: "
KINDS = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantization": "int8"},
    "dummy": {"dtype": "float32", "load_format": "dummy"},
}


@dataclass(frozen=True, slots=True)
class FactorInTorch(Factor):
    """A policy whose choice is made in torch."""

    rule: ClassVar[None] = None


REQUESTS = (
    {"max_new_tokens": 8, "threshold": None, "ignore_eos": True},
    {"max_new_tokens": 24},
    {"max_new_tokens": 24, "policy": FactorInTorch(1.0)},
    {"max_new_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 7, "ignore_eos": True},
)


def make(kind: str) -> Engine:
    return Engine("edlm-tiny", kv_cache_tokens=1024, num_threads=1, **KINDS[kind])


def numbers(result) -> tuple:
    return result.token_ids, result.confidences, result.entropies, result.commit_steps


def generate(engine) -> list[tuple]:
    return [numbers(engine.generate(PROMPT, **request)) for request in REQUESTS]


@pytest.fixture(scope="module")
def plain():
    """An engine of every kind, made while nothing is set, and what it generates then."""
    with ExitStack() as stack:
        engines = {kind: stack.enter_context(make(kind)) for kind in KINDS}
        results = {kind: generate(engine) for kind, engine in engines.items()}
        assert len({str(found) for found in results.values()}) == len(KINDS)
        yield {kind: (engines[kind], results[kind]) for kind in KINDS}


@contextmanager
def setting(change, undo):
    change()
    try:
        yield
    finally:
        undo()


def default_dtype(dtype):
    return setting(lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32))


def matmul_precision(name):
    return setting(
        lambda: torch.set_float32_matmul_precision(name),
        lambda: torch.set_float32_matmul_precision("highest"),
    )


def threads(count):
    before = torch.get_num_threads()
    return setting(lambda: torch.set_num_threads(count), lambda: torch.set_num_threads(before))


@contextmanager
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class NothingWorks(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} is called where the program can see it")


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "default device": lambda: setting(
        lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)
    ),
    "device": lambda: torch.device("meta"),
    "deterministic": lambda: setting(
        lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)
    ),
    "no grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "flushed denormals": lambda: setting(
        lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)
    ),
    "medium precision": lambda: matmul_precision("medium"),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "function mode": NothingWorks,
    "one thread": lambda: threads(1),
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings are errors": warnings_are_errors,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:TF32 acceleration on top")
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_program_change_nothing(plain, name):
    """Made before the engine is, and while it exists."""
    for kind, (before, want) in plain.items():
        begun = before.stream(PROMPT, **REQUESTS[0])
        next(begun)
        with SETTINGS[name](), make(kind) as engine:
            assert numbers(list(begun)[-1].generation) == want[0], f"{kind}, set while a request runs"
            assert generate(engine) == want, f"{kind}, set before"
            assert generate(before) == want, f"{kind}, set after loading"


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_frequencies_do_not_depend_on_the_default_type(dtype):
    rope = Rope(1e4, YarnScaling(4.0, 64, 1.1, truncate=False))
    want = rope.frequencies(32)
    with default_dtype(dtype):
        assert rope.frequencies(32).dtype == torch.float32 and torch.equal(rope.frequencies(32), want)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_deterministic_mode_does_not_touch_the_cache():
    """It makes torch.empty() write all that it returns, which would take the whole cache's memory at once."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) << 12

    config = read_config(config_dict(), "config.json")[0]
    with SETTINGS["deterministic"]():
        before = resident()
        cache = PagedKVCache(config, 1 << 20, 4, torch.float32)
        assert cache.bytes_per_token() << 20 >= 1 << 29
        assert resident() - before < 1 << 27
        assert all(t.is_contiguous() and t.data_ptr() % 64 == 0 for t in cache.keys + cache.values)


HOST = """
import gc, locale, logging, os, random, signal, sys, threading, warnings
import numpy, torch

def state():
    return {
        "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path),
        "signals": [signal.getsignal(s) for s in signal.valid_signals()],
        "locale": locale.setlocale(locale.LC_ALL),
        "log": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.stdout, sys.stderr),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()),
        "warnings": list(warnings.filters), "showwarning": warnings.showwarning,
        "random": (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "torch": (
            torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled,
        ),
        "numpy": (numpy.geterr(), numpy.get_printoptions()["precision"]),
    }

torch.set_num_threads(1)
before = state()
from edlm_engine import Engine

for options in ({}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"load_format": "dummy"}):
    with Engine("edlm-tiny", num_threads=2, **options) as engine:
        engine.generate(sys.argv[1], max_new_tokens=8)
        list(engine.stream([1, 2, 3], max_new_tokens=8, temperature=0.7))
        engine.chat([{"role": "user", "content": "Sort [2, 1]."}], max_new_tokens=4)
        repr(engine), engine.stats()
after = state()
assert before == after, [(key, before[key], after[key]) for key in before if before[key] != after[key]]
"""


def test_the_program_is_left_as_it_was():
    """Not a word, not a warning, no setting of another value."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", HOST, PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
