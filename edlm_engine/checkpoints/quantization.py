"""How the weights of a checkpoint folder are quantised, by its files' own words."""

from pathlib import Path

from ..errors import CheckpointError, shown
from ..models.config_reader import ConfigReader

QUANTIZATION_KEY = "quantization_config"  # in config.json
METHODS = {"edlm_int8": "int8", "edlm_fp8": "fp8"}  # its quant_method: what edlm quantize writes
# What other quantisers leave: files beside a config.json that may say nothing, and keys in it.
_FOREIGN_FILES = {
    "hf_quant_config.json": "ModelOpt", "quantize_config.json": "GPTQ", "quant_config.json": "AWQ",
}  # fmt: skip
_FOREIGN_KEYS = {"compression_config": "compressed-tensors", "quantization": "MLX"}
_REMEDY = "take the original ones, and quantization='int8' if you like"


def read_quantization(folder: Path, reader: ConfigReader) -> str | None:
    """ "int8" or "fp8" for what edlm quantize wrote, None for weights in floats.

    Raises CheckpointError, which names the file and the method, for what other tools quantised.
    """
    for name, method in _FOREIGN_FILES.items():
        if (folder / name).exists():
            raise _foreign(folder / name, method)
    for key, method in _FOREIGN_KEYS.items():
        if reader.data.get(key):
            raise _foreign(f"{reader.path}: key {key!r}", method)
    config = reader.get(QUANTIZATION_KEY, dict, None)
    if config is None:
        return None
    method = config.get("quant_method")
    if method is None and (config.get("load_in_8bit") or config.get("load_in_4bit")):
        method = "bitsandbytes"  # its first versions left the name out
    if not isinstance(method, str) or method not in METHODS:
        found = f"key {QUANTIZATION_KEY!r} has the method {shown(method)}"
        raise reader.error(f"{found}; known are those of edlm quantize: {', '.join(METHODS)}; {_REMEDY}")
    return METHODS[method]


def _foreign(where, method: str) -> CheckpointError:
    found = f"{where}: the weights are quantised by {method}, which is not supported"
    return CheckpointError(f"{found}; {_REMEDY}")
