"""What an engine may be asked to be, and what it becomes where the choice is left to it."""

import re
from dataclasses import dataclass, field, fields, replace
from numbers import Integral

import torch

from . import ops
from .checkpoints.checkpoint import Checkpoint
from .config import PREFILLS, DecodingConfig, ModelConfig
from .device_led.device_loop import why_unsupported
from .errors import CheckpointError, shown
from .hardware import gpu

STEPPINGS = ("eager", "direct", "graph", "device")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Far beyond use; a slip of the pen is told so, and does not fill the memory.
_MOST = {
    "block_length": 1 << 16, "max_batch_size": 1 << 14, "max_waiting": 2**31, "kv_cache_tokens": 2**31,
    "num_threads": 1 << 10,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The keyword arguments of Engine; see there. None stands for the default.

    Raises ValueError naming the one that is wrong.
    """

    device: str | torch.device | None = "auto"
    dtype: str | torch.dtype | None = "auto"
    load_format: str | None = "auto"
    quantization: str | None = None
    block_length: int | None = None
    mask_token_id: int | None = None
    prefill: str | None = None
    max_batch_size: int | None = 16
    max_waiting: int | None = None
    kv_cache_tokens: int | None = None
    num_threads: int | None = None
    stepping: str | None = "auto"
    hub: dict = field(default_factory=dict)  # arguments of huggingface_hub.snapshot_download

    def __post_init__(self) -> None:
        for option in fields(self):
            if getattr(self, option.name) is None and option.name != "hub":
                object.__setattr__(self, option.name, option.default)
        # torch's own ways to say it
        if isinstance(self.device, torch.device):
            device = "cpu" if self.device.type == "cpu" else str(self.device)
            object.__setattr__(self, "device", device)
        if isinstance(self.dtype, torch.dtype):
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        if not (isinstance(self.device, str) and re.fullmatch(r"cuda:\d{1,3}", self.device)):
            self._choice("device", ("auto", "cpu", "cuda"), " or a GPU by its number, 'cuda:1'")
        self._choice("dtype", ("auto", *DTYPES))
        self._choice("load_format", ("auto", "dummy"))
        self._choice("stepping", ("auto", *STEPPINGS))
        if self.prefill is not None:
            self._choice("prefill", PREFILLS)
        if self.quantization is not None:
            self._choice("quantization", ("int8", "fp8"))
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is None:
                continue
            least = 0 if name == "max_waiting" else 1
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                kind = f"{'a positive' if least else 'no negative'} integer or None"
                raise ValueError(f"{name} must be {kind}, got {shown(value)}")
            if value > most:
                raise ValueError(f"{name} must be at most {most}, got {value:.3g}")
            object.__setattr__(self, name, int(value))

    def _choice(self, name: str, known: tuple[str, ...], more: str = ""):
        value = getattr(self, name)
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}{more}, got {shown(value)}")


def choose_device(device: str, config: ModelConfig | None = None) -> str:
    """ "cpu", "cuda" or a GPU by its number; "auto" takes the current one if there is one and the build has
    kernels for it and the model."""
    if device == "cpu":
        return "cpu"
    reason = gpu.why_unusable(ops.build_info(), config)
    if device.startswith("cuda:") and not reason and int(device[5:]) >= torch.cuda.device_count():
        reason = f"there are {torch.cuda.device_count()} GPUs, from 0"
    if device != "auto" and reason:
        raise ValueError(f"device={device!r}: {reason}; use device='cpu'")
    if device != "auto":
        return device
    return "cpu" if reason else "cuda"


def choose_stepping(stepping: str, device: str) -> str:
    """ "auto": on a GPU the loop there, or where it knows none a graph per step; eager on the CPU."""
    if stepping in ("graph", "device") and device == "cpu":
        raise ValueError(f"stepping={stepping!r} needs a GPU; use 'eager' or 'direct'")
    if stepping == "device" and (reason := why_unsupported()):
        raise ValueError(f"stepping='device': {reason}; use 'graph'")
    if stepping != "auto":
        return stepping
    if device == "cpu":
        return "eager"
    return "graph" if why_unsupported() else "device"


def choose_dtype(dtype: str, device: str) -> str:
    """ "auto": bfloat16 on a GPU and where oneDNN has native kernels for it, else float32."""
    if dtype == "float16" and device == "cpu":
        raise ValueError("dtype='float16': the CPU has no kernels for it; use 'bfloat16' or 'float32'")
    if dtype != "auto":
        return dtype
    native = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "float32"


def choose_quantization(asked: str | None, checkpoint: Checkpoint, device: str) -> str | None:
    """What is asked for, or what the checkpoint has. Raises ValueError where the two differ, and where fp8
    does not run."""
    stored = checkpoint.quantization
    if asked and stored and asked != stored:
        raise ValueError(
            f"quantization={asked!r}: the matrices of {checkpoint.folder} are {stored} already; leave it "
            f"out, or quantise the original with `edlm quantize --type {asked}`"
        )
    quantization = asked or stored
    if quantization != "fp8":
        return quantization
    reason = "the CPU has no kernels for it"
    if device != "cpu":
        capability = torch.cuda.get_device_capability()
        reason = gpu.why_no_fp8(ops.build_info()["cuda_architectures"], capability)
    if reason and stored:
        raise ValueError(
            f"{checkpoint.folder / 'config.json'}: the matrices are fp8: {reason}; quantise the original "
            "with `edlm quantize --type int8`"
        )
    if reason:
        raise ValueError(f"quantization='fp8': {reason}; use quantization='int8'")
    return quantization


def choose_decoding(checkpoint: Checkpoint, options: EngineOptions) -> DecodingConfig:
    """The checkpoint's decoding with the options' overrides."""
    decoding, config = checkpoint.decoding, checkpoint.model
    decoding = replace(decoding, prefill=options.prefill or decoding.prefill)
    if decoding.autoregressive:
        given = [n for n in ("block_length", "mask_token_id", "prefill") if getattr(options, n) is not None]
        if given:
            raise ValueError(f"{given[0]}: {checkpoint.folder} is an autoregressive checkpoint and has none")
        return decoding
    mask = decoding.mask_token_id if options.mask_token_id is None else options.mask_token_id
    where = f"{checkpoint.folder / 'config.json'}: "
    if mask is None:
        raise CheckpointError(where + "key 'mask_token_id' is missing; give Engine(..., mask_token_id=ID)")
    if not isinstance(mask, int) or isinstance(mask, bool) or not 0 <= mask < config.vocab_size:
        vocabulary = f"[0, {config.vocab_size})"
        raise CheckpointError(f"{where}mask_token_id {mask!r} is outside the vocabulary {vocabulary}")
    return replace(decoding, mask_token_id=mask, block_length=options.block_length or decoding.block_length)
