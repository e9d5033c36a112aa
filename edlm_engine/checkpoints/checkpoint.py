"""An opened checkpoint folder: its configurations and its memory-mapped tensors."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..config import DecodingConfig, ModelConfig
from ..errors import CheckpointError, shown
from ..models.config_reader import ConfigReader, eos_ids
from ..models.families import find_family
from .folder import first_line, read_json
from .quantization import read_quantization
from .weight_files import ADAPTER, INDEX, find_weight_files

# What old versions of transformers saved beside the weights: angles, positions, causal masks.
_COMPUTED = re.compile(
    r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|\bposition_ids|\.attn\.(masked_)?bias|self_attn\.bias)$"
)
_log = logging.getLogger("edlm_engine")


class Checkpoint:
    """An opened checkpoint folder.

    model, decoding: its configurations; names: how it names its tensors; quantization: "int8" or "fp8"
    if its matrices are, else None.
    With `with_tensors=False` only the config files are read (load_format="dummy").
    """

    def __init__(self, folder: Path, *, with_tensors: bool = True):
        self.folder = folder
        path = folder / "config.json"
        if not path.exists() and (folder / ADAPTER).exists():
            raise CheckpointError(
                f"{path}: file is missing; {ADAPTER} is of an adapter: merge it into its model"
            )
        reader = ConfigReader(read_json(path), path)
        self.quantization = read_quantization(folder, reader)
        self._handles = {}
        self._read: set[str] = set()
        self._files = self._index() if with_tensors else {}
        family = find_family(reader)
        self.names = family.tensor_names(self._files)
        self.model: ModelConfig
        self.decoding: DecodingConfig
        self.model, decoding = family.read(reader, self._files if with_tensors else None)
        eos = dict.fromkeys(decoding.eos_token_ids + self._generation_eos())
        self.decoding = replace(decoding, eos_token_ids=tuple(eos))
        if with_tensors:
            self._check_layers(reader)
            self._check_head()

    def _generation_eos(self) -> tuple[int, ...]:
        """eos ids of generation_config.json, which may name more than config.json does."""
        path = self.folder / "generation_config.json"
        return eos_ids(ConfigReader(read_json(path), path), self.model.vocab_size) if path.exists() else ()

    def _index(self) -> dict[str, Path]:
        """Tensor name -> safetensors file."""
        paths, weight_map = find_weight_files(self.folder)
        files: dict[str, Path] = {}
        for path in paths:
            for name in self._open(path).keys():  # noqa: SIM118 not a dict
                if name in files:
                    raise CheckpointError(
                        f"{path}: {shown(name)} is in {files[name].name}, too; remove one of them"
                    )
                files[name] = path
        for name, file in weight_map.items():
            if files.get(name) != self.folder / file:
                raise CheckpointError(
                    f"{self.folder / file}: has no tensor {shown(name)}, which {INDEX} says is in it"
                )
        return files

    @staticmethod
    def _open(path: Path):
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError, MemoryError) as error:
            raise CheckpointError(f"{path}: truncated or no safetensors file: {first_line(error)}") from error

    def _check_layers(self, reader: ConfigReader):
        """Before anything is built for a number of layers that only config.json knows."""
        last = f"{self.names.body}.layers.{self.model.num_layers - 1}.input_layernorm.weight"
        if last not in self._files and f"{self.names.body}.layers.0.input_layernorm.weight" in self._files:
            found = f"key 'num_hidden_layers' is {self.model.num_layers}"
            raise reader.error(f"{found}, but the files lack the last layer's tensor {last!r}")

    def _check_head(self):
        if self.model.tied_head and not self.quantization and self.names.head in self._files:
            _log.warning(
                "%s: %r is left out: config.json says that the head is the embedding",
                self._files[self.names.head], self.names.head,
            )  # fmt: skip

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
            raise self._missing(name, shape)
        if path not in self._handles:
            self._handles[path] = self._open(path)
        try:
            tensor = self._handles[path].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: cannot read {shown(name)}: {first_line(error)}") from error
        if shape is not None and tuple(tensor.shape) != shape:
            got, want = list(tensor.shape), list(shape)
            raise CheckpointError(f"{path}: {shown(name)} has shape {got}; config.json asks for {want}")
        self._check_type(path, name, tensor.dtype, dtype)
        return tensor

    @staticmethod
    def _check_type(path: Path, name: str, found: torch.dtype, wanted: torch.dtype | None):
        if wanted is None and found.itemsize == 1 and found.is_floating_point:
            unknown = f"{shown(name)} is {found}, but config.json names no quantisation that is known here"
            raise CheckpointError(f"{path}: {unknown}")
        if found != wanted if wanted else not found.is_floating_point:
            raise CheckpointError(
                f"{path}: {shown(name)} has dtype {found}; {wanted or 'a float type'} is needed"
            )

    def _missing(self, name: str, shape: tuple[int, ...] | None) -> CheckpointError:
        """Where all names have another prefix it says so."""
        wanted = f" of shape {list(shape)}" if shape else ""
        instead = ""
        if not any(other.startswith(f"{self.names.body}.") for other in self._files):
            other = next(iter(self._files), None)
            instead = f"; names like {shown(other)} are not known here" if other else "; the files are empty"
        return CheckpointError(f"{self.folder}: tensor {name!r}{wanted} is missing{instead}")

    def unneeded(self, name: str) -> bool:
        """Whether a tensor is none of the weights: what can be computed, and a head beside a model whose head
        is its embedding."""
        return bool(_COMPUTED.search(name)) or (self.model.tied_head and name == self.names.head)

    def check_all_read(self):
        """Raise CheckpointError if a tensor has not been read: the model would lack its weights."""
        left = [name for name in self._files if name not in self._read and not self.unneeded(name)]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            found = f"{self._files[left[0]]}: tensor {shown(left[0])}{more} has no place in the model"
            raise CheckpointError(
                f"{found} of config.json, of {self.model.num_layers} layers; without it texts would be wrong"
            )

    def close(self):
        """Let go of the mapped files, whose pages count as this process's memory once they were read; tensors
        handed out keep their mapping alive, and later calls open the files again."""
        self._handles.clear()
