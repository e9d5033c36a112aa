"""Checkpoint folders: finding them, and reading files that a stranger may have written."""

import json
import os
import re
import stat
from pathlib import Path

from ..errors import CheckpointError, shown

ASSETS = Path(__file__).parents[1] / "assets"
MAX_JSON_BYTES = 64 << 20  # more than any file has here; parsed, one takes up to 25 times its size
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt"]
_NOT_FROM_HUB = ["consolidated*", "original/*", "adapter_*"]  # the weights in other formats; adapters


def bundled_models() -> list[str]:
    """Names of the models that ship inside the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def resolve(model, hub: dict | None = None) -> Path:
    """The folder of `model`: a path, a bundled name, or a hub id (downloaded, or taken from the hub's cache).
    hub: arguments of huggingface_hub.snapshot_download (revision, token, cache_dir, local_files_only).

    Raises CheckpointError that says which of the three was tried, and why it failed; TypeError for what is no
    name at all.
    """
    if not isinstance(model, str | os.PathLike) or not isinstance(os.fspath(model), str):
        raise TypeError(f"model must be a folder, a bundled model's name or a hub id, got {shown(model)}")
    name = os.fspath(model)
    if not name:
        raise CheckpointError("model is empty; give a folder, a bundled model's name or a hub id")
    folder = Path(os.path.expanduser(name))  # leaves the name of an unknown user as it is
    if os.path.isdir(folder):
        return folder
    if name in bundled_models():
        return ASSETS / name
    if _HUB_ID.fullmatch(name) and not name.startswith("~"):
        return _download(name, hub or {})
    kind = "a file; the engine takes the folder that holds it" if os.path.exists(folder) else "no folder"
    bundled = ", ".join(bundled_models()) or "none"
    raise CheckpointError(
        f"{shown(name)[1:-1]}: is {kind}, no bundled model ({bundled}) and no hub id (organisation/name)"
    )


def _download(hub_id: str, hub: dict) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        patterns = {"allow_patterns": _HUB_FILES, "ignore_patterns": _NOT_FROM_HUB}
        return Path(snapshot_download(hub_id, **patterns, **hub))
    except RepositoryNotFoundError as error:
        message = "the hub has no such model, or it needs a login (hf auth login)"
        raise CheckpointError(f"{hub_id}: no folder here, and {message}") from error
    except HFValidationError as error:
        raise CheckpointError(f"{hub_id}: no folder here, and no hub id: {first_line(error)}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        message = "the hub cannot be reached and its cache here does not hold the model"
        raise CheckpointError(f"{hub_id}: no folder here; {message}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What a library's error says, without its explanations."""
    return shown(str(error).strip().partition("\n")[0])[1:-1]


def is_file(path: Path) -> bool:
    """Whether there is a file, or a link to one: no folder, pipe or device, and no name that cannot be."""
    return os.path.isfile(path)


def read_bytes(path: Path, most: int = MAX_JSON_BYTES) -> bytes:
    """A file of at most so many bytes.

    Raises CheckpointError for what is missing, larger, or no file: a pipe or a device could be without end.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: must be a file, and is a folder, a pipe or a device")
        if status.st_size > most:
            raise CheckpointError(f"{path}: is larger than {most >> 20} MiB, which no such file is")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path, most: int = MAX_JSON_BYTES) -> str:
    """The same as UTF-8 text."""
    data = read_bytes(path, most)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: no valid UTF-8: {error}") from error


def read_json(path: Path, kind: type = dict) -> dict | list:
    """The object (or list) in a JSON file. Raises CheckpointError naming the file when there is none."""
    text = read_text(path)
    try:
        data = json.loads(text)
    except RecursionError:
        raise CheckpointError(f"{path}: no valid JSON: nested too deeply") from None
    except ValueError as error:  # also for a number of thousands of digits
        raise CheckpointError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(data, kind):
        raise CheckpointError(f"{path}: must hold a {kind.__name__}, holds a {type(data).__name__}")
    return data


def read_object(path: Path) -> dict:
    """The object in a JSON file; empty where there is none."""
    return read_json(path) if path.is_file() else {}
