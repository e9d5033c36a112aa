"""Checkpoint folders: finding them, reading config files, memory-mapped tensors."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..config import DecodingConfig, ModelConfig
from ..errors import CheckpointError
from ..models.config_reader import ConfigReader, eos_ids
from ..models.families import find_family

ASSETS = Path(__file__).parents[1] / "assets"
QUANTIZATION_KEY = "quantization_config"  # in config.json
METHODS = {"edlm_int8": "int8", "edlm_fp8": "fp8"}  # its quant_method: what edlm quantize writes
# Files of other quantisers, beside a config.json that may say nothing.
FOREIGN_QUANTIZATION = {
    "hf_quant_config.json": "ModelOpt", "quantize_config.json": "GPTQ", "quant_config.json": "AWQ",
}  # fmt: skip
# What old versions of transformers saved beside the weights: angles, positions, causal masks.
_COMPUTED = re.compile(
    r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|\bposition_ids|\.attn\.(masked_)?bias|self_attn\.bias)$"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]


def bundled_models() -> list[str]:
    """Names of the models that ship inside the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def resolve(model, hub: dict | None = None) -> Path:
    """The folder of `model`: a path, a bundled name, or a hub id (downloaded, or taken from the hub's cache).
    hub: arguments of huggingface_hub.snapshot_download (revision, token, cache_dir, local_files_only).

    Raises CheckpointError that says which of the three was tried, and why it failed.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    name = str(model)
    if name in bundled_models():
        return ASSETS / name
    if _HUB_ID.fullmatch(name) and not folder.is_absolute():
        return _download(name, hub or {})
    kind = "a file; the engine takes the folder that holds it" if folder.exists() else "no folder"
    bundled = ", ".join(bundled_models()) or "none"
    raise CheckpointError(
        f"{name}: is {kind}, no bundled model ({bundled}) and no hub id (organisation/name)"
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
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, **hub))
    except RepositoryNotFoundError as error:
        message = "the hub has no such model, or it needs a login (hf auth login)"
        raise CheckpointError(f"{hub_id}: no folder here, and {message}") from error
    except HFValidationError as error:
        raise CheckpointError(f"{hub_id}: no folder here, and no hub id: {_first_line(error)}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        message = "the hub cannot be reached and its cache here does not hold the model"
        raise CheckpointError(f"{hub_id}: no folder here; {message}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def read_json(path: Path, kind: type = dict) -> dict | list:
    """The object (or list) in a JSON file. Raises CheckpointError naming the file when there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(data, kind):
        raise CheckpointError(f"{path}: must hold a {kind.__name__}, holds a {type(data).__name__}")
    return data


class Checkpoint:
    """An opened checkpoint folder.

    model, decoding: its configurations; names: how it names its tensors; quantization: "int8" or "fp8"
    if its matrices are, else None.
    With `with_tensors=False` only the config files are read (load_format="dummy").
    """

    def __init__(self, folder: Path, *, with_tensors: bool = True):
        self.folder = folder
        config_path = folder / "config.json"
        data = read_json(config_path)
        self._refuse_foreign_quantization()
        self._files = self._index() if with_tensors else {}
        self._handles = {}
        self._read: set[str] = set()
        reader = ConfigReader(data, config_path)
        family = find_family(reader)
        self.names = family.tensor_names(self._files)
        self.model: ModelConfig
        self.decoding: DecodingConfig
        self.model, decoding = family.read(reader, self._files if with_tensors else None)
        self.quantization = _quantization(reader)
        eos = dict.fromkeys(decoding.eos_token_ids + self._generation_eos())
        self.decoding = replace(decoding, eos_token_ids=tuple(eos))

    def _refuse_foreign_quantization(self):
        for name, method in FOREIGN_QUANTIZATION.items():
            if (path := self.folder / name).exists():
                found = f"{path}: the weights are quantised by {method}, which is not supported"
                raise CheckpointError(f"{found}; take the original ones, and quantization='int8' if you like")

    def _generation_eos(self) -> tuple[int, ...]:
        """eos ids of generation_config.json, which may name more than config.json does."""
        path = self.folder / "generation_config.json"
        return eos_ids(ConfigReader(read_json(path), path)) if path.exists() else ()

    def _index(self) -> dict[str, Path]:
        """Tensor name -> safetensors file."""
        index_path = self.folder / "model.safetensors.index.json"
        if index_path.exists() and not (self.folder / "model.safetensors").exists():
            weight_map = read_json(index_path).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{index_path}: key 'weight_map' is missing")
            files = {name: self.folder / str(file) for name, file in weight_map.items()}
            for path in sorted(set(files.values())):
                if not path.exists():
                    raise CheckpointError(f"{path}: file is missing; {index_path.name} lists it")
            return files
        files: dict[str, Path] = {}
        for path in self._weight_files():
            for name in self._open(path).keys():  # noqa: SIM118 not a dict
                if name in files:
                    raise CheckpointError(
                        f"{path}: {name!r} is in {files[name].name}, too; remove one of them"
                    )
                files[name] = path
        return files

    def _weight_files(self) -> list[Path]:
        """Where the tensors are if no index says it: model.safetensors, whatever lies beside it, else all.
        Names with a leading dot are what macOS leaves on foreign disks."""
        if (path := self.folder / "model.safetensors").exists():
            return [path]
        paths = sorted(path for path in self.folder.glob("*.safetensors") if not path.name.startswith("."))
        paths = [path for path in paths if path.name != "adapter_model.safetensors"]
        if not paths:
            raise CheckpointError(f"{self.folder}: no .safetensors file (load_format='dummy' needs none)")
        return paths

    @staticmethod
    def _open(path: Path):
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: truncated or no safetensors file: {_first_line(error)}"
            ) from error

    @property
    def tensor_names(self) -> list[str]:
        """Names of all tensors; none without them."""
        return list(self._files)

    def tensor(
        self, name: str, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The memory-mapped tensor `name`; raises unless it has `shape` (None: any), and `dtype` (None: any
        float type)."""
        self._read.add(name)
        path = self._files.get(name)
        if path is None:
            wanted = f" of shape {list(shape)}" if shape else ""
            raise CheckpointError(f"{self.folder}: tensor {name!r}{wanted} is missing")
        if path not in self._handles:
            self._handles[path] = self._open(path)
        try:
            tensor = self._handles[path].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: cannot read {name!r}: {_first_line(error)}") from error
        if shape is not None and tuple(tensor.shape) != shape:
            got, want = list(tensor.shape), list(shape)
            raise CheckpointError(f"{path}: {name!r} has shape {got}; config.json asks for {want}")
        if dtype is None and tensor.dtype.itemsize == 1 and tensor.is_floating_point():
            found = f"{name!r} is {tensor.dtype}, but config.json names no quantisation that is known here"
            raise CheckpointError(f"{path}: {found}")
        if tensor.dtype != dtype if dtype else not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: {name!r} has dtype {tensor.dtype}; {dtype or 'a float type'} is needed"
            )
        return tensor

    def unneeded(self, name: str) -> bool:
        """Whether a tensor is none of the weights: what can be computed, and a head beside a model whose head
        is its embedding."""
        return bool(_COMPUTED.search(name)) or (self.model.tied_head and name == self.names.head)

    def check_all_read(self):
        """Raise CheckpointError if a tensor has not been read: the model would lack its weights."""
        left = [name for name in self._files if name not in self._read and not self.unneeded(name)]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            found = f"{self._files[left[0]]}: tensor {left[0]!r}{more} has no place in the model"
            raise CheckpointError(
                f"{found} of config.json, of {self.model.num_layers} layers; without it texts would be wrong"
            )

    def close(self):
        """Let go of the mapped files, whose pages count as this process's memory once they were read; tensors
        handed out keep their mapping alive, and later calls open the files again."""
        self._handles.clear()


def _quantization(reader: ConfigReader) -> str | None:
    """The scheme of a quantised checkpoint."""
    config = reader.get(QUANTIZATION_KEY, dict, None)
    if config is None:
        return None
    method = config.get("quant_method")
    if method not in METHODS:
        found = f"key {QUANTIZATION_KEY!r} has the method {method!r}"
        raise reader.error(f"{found}; known are those of edlm quantize: {', '.join(METHODS)}")
    return METHODS[method]


class DummyTensors:
    """Stands in for Checkpoint.tensor with random weights: N(0, 0.02), norms 1, biases 0.

    Filled by repeating one pool of random numbers, because drawing billions of them takes minutes. device:
    where the tensors are made; on a GPU that takes a second, copying them there as long as reading a disk.
    """

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu"):
        generator = torch.Generator().manual_seed(seed)
        pool = torch.randn(1_000_003, generator=generator) * 0.02  # a prime, so rows do not repeat
        self._pool = pool.to(device=device, dtype=torch.bfloat16)
        self._offset = 0

    def close(self):
        """Nothing is held."""

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        device = self._pool.device
        if name.endswith(".bias"):
            return torch.zeros(shape, device=device)
        if len(shape) == 1:
            return torch.ones(shape, device=device)
        out = torch.empty(shape, dtype=torch.bfloat16, device=device)
        flat = out.view(-1)
        for begin, piece in self._pieces(flat.numel()):
            flat[begin : begin + len(piece)] = piece
        return out

    def _pieces(self, count: int) -> Iterator[tuple[int, torch.Tensor]]:
        begin = 0
        while begin < count:
            piece = self._pool[self._offset : self._offset + count - begin]
            yield begin, piece
            begin += len(piece)
            self._offset = (self._offset + len(piece)) % len(self._pool)
