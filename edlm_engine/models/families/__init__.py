"""The families of checkpoints that the engine reads: a module each, whose FAMILY is found by being here."""

import importlib
import pkgutil
from collections.abc import Container
from functools import cache

from ...config import DecodingConfig, ModelConfig
from ..config_reader import ConfigReader
from ..family import Family


@cache
def families() -> tuple[Family, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}").FAMILY for name in names)


def find_family(reader: ConfigReader) -> Family:
    """The family of a config.json, by its architectures, or its model_type where it has none.

    Raises CheckpointError, which names the known ones, when there is none.
    """
    architectures = reader.get("architectures", list, [])
    model_type = reader.get("model_type", str, "")
    for family in families():
        if any(name in architectures for name in family.architectures):
            return family
    for family in families():
        if not architectures and model_type in family.model_types:
            return family
    known = sorted(name for family in families() for name in family.architectures)
    found = f"architectures {architectures}, model_type {model_type!r}"
    raise reader.error(f"{found}: no such family here; known: {', '.join(known)}")


def read_config(
    data: dict, path, tensor_names: Container[str] | None = None
) -> tuple[ModelConfig, DecodingConfig]:
    """Both configurations of a checkpoint.

    data: the parsed config.json; path: its file, for messages; tensor_names: names in the checkpoint, which
    some families look at where the config is silent (None: config only).
    Raises CheckpointError for unknown architectures and missing or wrong keys.
    """
    reader = ConfigReader(data, path)
    return find_family(reader).read(reader, tensor_names)
