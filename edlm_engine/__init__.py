"""A fast engine for block-diffusion language models of the Efficient-DLM kind."""

import logging
from typing import TYPE_CHECKING

from .hardware.openmp import load_passive

if TYPE_CHECKING:
    from . import benchmark, policies
    from .core.statistics import EngineStats
    from .engine import Engine
    from .errors import (
        CapacityError,
        CheckpointError,
        EngineBusyError,
        EngineClosedError,
        NumericalError,
        RequestTimeoutError,
    )
    from .outputs import Chunk, Forwards, Generation
    from .params import SamplingParams

load_passive()
# Silent unless the program says otherwise, as libraries are.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"
__all__ = [
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "Engine",
    "EngineBusyError",
    "EngineClosedError",
    "EngineStats",
    "Forwards",
    "Generation",
    "NumericalError",
    "RequestTimeoutError",
    "SamplingParams",
    "benchmark",
    "policies",
]

_HOME = {"Engine": "engine", "SamplingParams": "params", "EngineStats": "core.statistics"}
_MODULES = ("benchmark", "policies")
_HOME |= dict.fromkeys(("Chunk", "Forwards", "Generation"), "outputs")


if not TYPE_CHECKING:  # to type checkers it would say that every name is there

    def __getattr__(name: str) -> object:
        # importing torch takes a second or two: only when something that needs it is asked for
        if name in __all__:
            from importlib import import_module

            if name in _MODULES:
                return import_module(f".{name}", __name__)
            return getattr(import_module(f".{_HOME.get(name, 'errors')}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
