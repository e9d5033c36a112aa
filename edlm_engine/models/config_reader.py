"""Typed access to a checkpoint's JSON files."""

import math

from ..errors import CheckpointError, shown

MOST = 2**31 - 1  # the kernels count in int32
SMALLEST, LARGEST = 2.0**-126, 2.0**127  # what float32, in which the kernels compute, holds in full precision


class ConfigReader:
    """Typed access to a config dict; every error names the file and the key."""

    def __init__(self, data: dict, path):
        self.data, self.path = data, path

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def get(self, key: str, kind, default=...):
        """The value of `key`, which must be of type `kind` (bool is no int); absent or null: the default."""
        value = self.data.get(key)
        if value is None:
            if default is ...:
                raise self.error(f"key {key!r} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**1000 else math.inf
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"key {key!r} must be of type {kind.__name__}, got {shown(value)}")
        if kind is int and abs(value) > MOST:
            raise self.error(f"key {key!r} must be within ±{MOST}, got {shown(value)}")
        return value

    def size(self, key: str, default=..., most: int = MOST) -> int:
        value = self.get(key, int, default)
        if value < 1:
            raise self.error(f"key {key!r} must be at least 1, got {value}")
        if value > most:
            raise self.error(f"key {key!r} must be at most {most}, got {value}")
        return value

    def positive(self, key: str, default=...) -> float:
        value = self.get(key, float, default)
        if not SMALLEST <= value <= LARGEST:
            cannot = ", which float32 cannot hold" if 0 < value < math.inf else ""
            raise self.error(f"key {key!r} must be a positive number, got {value}{cannot}")
        return value

    def choice(self, key: str, table: dict, default):
        value = self.get(key, str, None)
        if value is None:
            return default
        if value not in table:
            raise self.error(f"key {key!r} is {shown(value)}; known: {', '.join(sorted(table))}")
        return table[value]

    def section(self, key: str) -> "ConfigReader | None":
        """The object under `key`; absent, null or empty: None."""
        data = self.get(key, dict, None)
        return ConfigReader(data, f"{self.path}: {key}") if data else None


def eos_ids(reader: ConfigReader, vocab_size: int) -> tuple[int, ...]:
    """eos_token_id as a tuple: config files hold one id, a list, or nothing."""
    value = reader.data.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise reader.error(f"key 'eos_token_id' must be an id or a list of ids, got {shown(value)}")
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
        found = f"key 'eos_token_id' holds {shown(outside[0])}"
        raise reader.error(f"{found}, which is outside the vocabulary [0, {vocab_size})")
    return tuple(ids)
