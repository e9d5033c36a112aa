"""`edlm quantize`: a checkpoint with int8 or fp8 matrices, written once: loading has nothing to compute."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.folder import is_file, read_json, resolve
from ..checkpoints.quantization import METHODS, QUANTIZATION_KEY
from ..checkpoints.weight_files import INDEX, OTHER_FORMATS
from ..errors import CheckpointError
from ..models.quantization import DTYPES, check_columns, quantize_weight
from ..progress import progress_bar

SHARD_BYTES = 1 << 30  # of tensors in memory at a time


def quantize_checkpoint(source, out: Path, shard_bytes: int = SHARD_BYTES, kind: str = "int8") -> Path:
    """Write `source` (folder, bundled name or hub id) to the new folder `out`, its matrices quantised.

    kind: "int8", for any device, or "fp8" (float8_e4m3fn), for GPUs of compute capability 8.9 or later.
    Every matrix NAME of a linear layer, and the head, becomes of that type, [outputs, inputs], beside
    NAME_scale, float32 [outputs]; a tied head is stored beside its embedding, which stays as it is. All other
    tensors are copied, and all other files that lie in the folder and hold no weights. The folder appears
    under its name when it is complete.

    Raises CheckpointError for a source that cannot be used or is quantised already, ValueError for another
    kind, if `out` or `out`.partial is there, or for a model that cannot be quantised.
    """
    if kind not in DTYPES:
        raise ValueError(f"the type of the matrices must be one of {', '.join(DTYPES)}, got {kind!r}")
    path = resolve(source)
    if out.exists():
        raise ValueError(f"{out}: is there already; give a new folder")
    checkpoint = Checkpoint(path)
    if checkpoint.quantization:
        raise CheckpointError(f"{path}: is quantised already")
    check_columns(checkpoint.model)
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(
            f"{partial}: is there already, perhaps from a run that was ended; remove it"
        ) from None
    try:
        with progress_bar(f"quantising {path.name}", len(checkpoint.tensor_names)) as tick:
            _write_shards(_quantised(checkpoint, kind, tick), partial, shard_bytes)
        _copy_rest(path, partial, kind)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _is_matrix(checkpoint: Checkpoint, name: str) -> bool:
    return name == checkpoint.names.head or (".layers." in name and name.endswith("_proj.weight"))


def _quantised(
    checkpoint: Checkpoint, kind: str, tick: Callable[[], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the new checkpoint, one after the other."""
    head, embedding = checkpoint.names.head, f"{checkpoint.names.body}.embed_tokens.weight"
    for name in checkpoint.tensor_names:
        if checkpoint.unneeded(name):
            tick()
            continue
        tensor = checkpoint.tensor(name)
        if not _is_matrix(checkpoint, name):
            yield name, tensor.clone()
        if _is_matrix(checkpoint, name) or (name == embedding and checkpoint.model.tied_head):
            weight = quantize_weight(tensor, DTYPES[kind])
            if not weight.scale.isfinite().all():
                raise CheckpointError(f"{checkpoint.folder}: tensor {name!r} holds NaN or infinite weights")
            matrix = name if _is_matrix(checkpoint, name) else head
            yield matrix, weight.values
            yield f"{matrix}_scale", weight.scale
        del tensor
        checkpoint.close()
        tick()


def _write_shards(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int) -> None:
    weight_map, shard, size, total, count = {}, {}, 0, 0, 0

    def write():
        nonlocal shard, size, count
        count += 1
        file = f"model-{count:05d}.safetensors"
        save_file(shard, str(folder / file))
        (folder / file).chmod(folder.stat().st_mode & 0o666)  # it comes readable for its owner alone
        weight_map.update(dict.fromkeys(shard, file))
        shard, size = {}, 0

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            write()
        shard[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _lies_in(folder: Path, path: Path) -> bool:
    """Whether it is a file of the folder: a link elsewhere could show what its writer may not see. In the
    hub's cache every file is a link into `blobs`."""
    homes = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        homes.append(folder.resolve().parents[1] / "blobs")
    return is_file(path) and path.resolve().parent in homes


def _copy_rest(source: Path, out: Path, kind: str) -> None:
    for path in source.iterdir():
        weights = path.suffix in (".safetensors", *OTHER_FORMATS) or path.name.endswith(".index.json")
        if not weights and path.name != "config.json" and _lies_in(source, path):
            shutil.copyfile(path, out / path.name)
    method = next(method for method, own in METHODS.items() if own == kind)
    config = read_json(source / "config.json") | {QUANTIZATION_KEY: {"quant_method": method}}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
