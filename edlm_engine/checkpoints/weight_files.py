"""Which files of a folder hold its tensors."""

import logging
from pathlib import Path

from ..errors import CheckpointError, shown
from .folder import is_file, read_json

ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_NO_SHARDS = ("adapter_model", "consolidated")  # the second: Mistral's own format, beside transformers'
OTHER_FORMATS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".npz")
_log = logging.getLogger("edlm_engine")


def find_weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a folder, and its index: which of them a tensor is in, as far as it is said.

    As in transformers `model.safetensors` wins over whatever lies beside it, and an index over other files.
    Raises CheckpointError for a folder without any, and for an index that names what is not there or does not
    lie in the folder.
    """
    _mention_adapters(folder)
    if (folder / _SINGLE).exists():
        return [_checked(folder / _SINGLE)], {}
    if (folder / INDEX).exists():
        weight_map = _read_index(folder / INDEX)
        paths = [folder / name for name in sorted(set(weight_map.values()))]
        return [_checked(path, f"; {INDEX} lists it") for path in paths], weight_map
    # names with a leading dot are what macOS leaves on foreign disks
    names = sorted(path.name for path in folder.glob("*.safetensors") if path.name.isprintable())
    names = [name for name in names if not name.startswith((".", *_NO_SHARDS))]
    if not names:
        raise CheckpointError(
            f"{folder}: no .safetensors file{_what_else(folder)} (load_format='dummy' needs none)"
        )
    return [_checked(folder / name) for name in names], {}


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: key 'weight_map' is missing or holds no object of tensor names and file names"
        )
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_file_name(file):
            found = f"{path}: key 'weight_map' has {shown(file)} for {shown(name)}"
            raise CheckpointError(f"{found}; it must be the name of a file in the same folder")
    return weight_map


def _is_file_name(text: str) -> bool:
    return text.isprintable() and text == Path(text).name and text not in ("", "..") and len(text) < 256


def _checked(path: Path, where: str = "") -> Path:
    if not is_file(path):
        what = "must be a file, and is a folder, a pipe or a device" if path.exists() else "file is missing"
        raise CheckpointError(f"{path}: {what}{where}")
    return path


def _mention_adapters(folder: Path):
    for name in (ADAPTER, "adapter_model.safetensors"):
        if (folder / name).exists():
            _log.warning(
                "%s: an adapter lies beside the model and is left out; merge it to use it", folder / name
            )
            return


def _what_else(folder: Path) -> str:
    other = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_FORMATS)
    return f", and {shown(other[0])} is of a format that is not read here" if other else ""
