"""The settings file of `edlm tune`: SamplingParams that suit a model on a machine."""

import json
from pathlib import Path

from .params import PARAM_NAMES, SamplingParams

SAMPLING_KEY = "sampling"  # the part that an engine reads; the rest tells how it was found


def load_settings(settings) -> SamplingParams:
    """settings: path of the file, or a dict with its contents. Raises ValueError that names file and key."""
    where = "settings"
    if not isinstance(settings, dict):
        where, path = str(settings), Path(settings)
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{where}: file is missing") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{where}: no valid JSON: {error}") from error
    values = settings.get(SAMPLING_KEY) if isinstance(settings, dict) else None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: key {SAMPLING_KEY!r} must hold an object; edlm tune writes such a file")
    unknown = sorted(set(values) - set(PARAM_NAMES))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r} in {SAMPLING_KEY!r}")
    try:
        return SamplingParams(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def save_settings(path: Path, sampling: dict, **found) -> None:
    """Write the file; `found`: how the settings were found."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps({SAMPLING_KEY: sampling, **found}, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)
