"""The settings file of `edlm tune`: SamplingParams that suit a model on a machine."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from .errors import shown
from .files import replace_file
from .params import PARAM_NAMES, SamplingParams

SAMPLING_KEY = "sampling"  # the part that an engine reads; the rest tells how it was found


def load_settings(settings: Any) -> SamplingParams:
    """settings: path of the file, or a dict with its contents. Raises ValueError that names file and key,
    TypeError for something else."""
    where = "settings"
    if not isinstance(settings, dict):
        if not isinstance(settings, str | PathLike):
            raise TypeError(f"settings must be the path of a file or a dict, got {shown(settings)}")
        where, settings = str(settings), _read(Path(settings))
    values = settings.get(SAMPLING_KEY) if isinstance(settings, dict) else None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: key {SAMPLING_KEY!r} must hold an object; edlm tune writes such a file")
    unknown = [key for key in values if key not in PARAM_NAMES]
    if unknown:
        known = ", ".join(PARAM_NAMES)
        raise ValueError(f"{where}: unknown key {shown(unknown[0])} in {SAMPLING_KEY!r}; known: {known}")
    try:
        return SamplingParams(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"{path}: file is missing") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no valid JSON: {error}") from error


def save_settings(path: Path, sampling: dict[str, Any], **found: Any) -> None:
    """Write the file; `found`: how the settings were found."""
    text = json.dumps({SAMPLING_KEY: sampling, **found}, indent=1) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
