"""The families of checkpoints that the engine reads: a module each, whose FAMILY is found by being here."""

import importlib
import pkgutil
from collections.abc import Container
from functools import cache

from ...config import DecodingConfig, ModelConfig
from ...errors import shown
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
    found = f"architectures {shown(architectures)}, model_type {shown(model_type)}"
    for family in families():
        if any(name in architectures for name in family.architectures):
            if _contradicts(model_type, family):
                raise reader.error(f"{found}: name two families; remove what is wrong")
            return family
    for family in families():
        if not architectures and model_type in family.model_types:
            return family
    known = sorted(name for family in families() for name in family.architectures)
    raise reader.error(f"{found}: no such family here; known: {', '.join(known)}")


def _contradicts(model_type: str, family: Family) -> bool:
    """Whether the type is another family's. transformers goes by it, and knows autoregressive ones alone."""
    others = [other for other in families() if other is not family and other.autoregressive]
    return family.autoregressive and any(model_type in other.model_types for other in others)


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
