"""A fast engine for block-diffusion language models of the Efficient-DLM kind."""

import os
import sys

# GNU OpenMP's default barrier spins; beside another busy process on the same cores it makes a forward
# about 15 times slower. libgomp reads the policy once, when torch loads it; set later, it would only make
# `edlm info` claim what is not so.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = [
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "Engine",
    "EngineClosedError",
    "Generation",
    "NumericalError",
    "SamplingParams",
]

_HOME = {
    "Engine": "engine",
    "SamplingParams": "params",
    "Generation": "outputs",
    "Chunk": "outputs",
    "CapacityError": "errors",
    "CheckpointError": "errors",
    "EngineClosedError": "errors",
    "NumericalError": "errors",
}


def __getattr__(name):
    # importing torch takes a second or two: only when something that needs it is asked for
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
