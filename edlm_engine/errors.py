"""The engine's own exceptions. Bad arguments are plain ValueError or TypeError."""


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
