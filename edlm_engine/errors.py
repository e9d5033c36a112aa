"""The engine's own exceptions, and how their messages show values. Bad arguments are plain ValueError or
TypeError."""

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """`value` as messages show it: its repr, which escapes what would act on a terminal, cut if long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python writes down
        return f"a very long {type(value).__name__}"


class CheckpointError(ValueError):
    """A checkpoint folder cannot be used; the message names the file and the key or tensor."""


class CapacityError(ValueError):
    """A request can never fit: into the KV cache or into the model's positions."""


class NumericalError(RuntimeError):
    """The model produced NaN or infinite logits for this request."""


class EngineClosedError(RuntimeError):
    """The engine was closed, or broke down, before the request finished."""


class EngineBusyError(RuntimeError):
    """As many requests wait as Engine(max_waiting=...) allows; try again later."""


class RequestTimeoutError(TimeoutError):
    """The request did not finish within its timeout."""
