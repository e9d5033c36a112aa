"""Linear layers y = x Wᵀ over a weight that was laid out once, when it was loaded."""

from dataclasses import dataclass, field

import torch

from .. import ops, packing
from .cublaslt import ProductTuner, searching
from .quantization import QuantizedWeight
from .timing import packed_wins, time_on_gpu

MANY_ROWS = 256  # on a GPU: from here on an unpacked copy and cuBLAS take less time than a packed weight


Quantized = tuple[torch.Tensor | None, torch.Tensor | None]  # as ops.quantize_rows writes them; or nothing
NOTHING: Quantized = (None, None)


class QuantizedRows:
    """Buffers for the left side of a product of one-byte elements. All layers of a model share them, and they
    stay between forwards.

    columns: the most that any layer's input has; dtype: uint8 or float8_e4m3fn (ops.quantize_rows); rows: how
    many they hold at first. When more come, a GPU keeps the old buffers: captured graphs go on using them.
    """

    def __init__(self, columns: int, dtype=torch.uint8, device="cpu", rows: int = 0):
        self._columns, self._dtype, self._device = columns, dtype, torch.device(device)
        self._outgrown = []
        self._allocate(rows)

    def _allocate(self, rows: int):
        self._bytes = torch.empty(rows * self._columns, dtype=self._dtype, device=self._device)
        self._scales = torch.empty(rows, dtype=torch.float32, device=self._device)

    def buffers(self, rows: int, columns: int) -> Quantized:
        """For so many elements and their scales. They are valid until the next call."""
        if rows > len(self._scales):
            if packing.on_gpu(self._device):
                self._outgrown.append((self._bytes, self._scales))
            self._allocate(1 << (rows - 1).bit_length())
        return self._bytes[: rows * columns].view(rows, columns), self._scales[:rows]

    def quantize(self, x: torch.Tensor) -> Quantized:
        """x: T [rows, columns] -> its elements and scales (ops.quantize_rows), valid until the next call."""
        buffers = self.buffers(*x.shape)
        ops.quantize_rows(x, *buffers)
        return buffers


@dataclass(slots=True)
class DenseLinear:
    """torch's own product; on a GPU cuBLAS, or cuBLASLt where `products` found something faster."""

    weight: torch.Tensor  # [outputs, inputs]
    products: ProductTuner | None = None

    def quantized_input(self, rows: int) -> Quantized:
        """Buffers for the layer's quantised input. An op before the layer may fill them; then they are an
        argument of the call. NOTHING where the layer multiplies its input as it is."""
        return NOTHING

    def __call__(self, x: torch.Tensor, out: torch.Tensor, quantized: Quantized = NOTHING) -> torch.Tensor:
        """x: T [rows, inputs], out: T [rows, outputs]; returns out. quantized: the buffers of
        quantized_input(rows), if they were filled from x."""
        if self.products:
            return self.products.multiply(x, self.weight, out)
        return torch.mm(x, self.weight.t(), out=out)


class PackedLinear:
    """The engine's own kernel. On a CPU 1.0 to 1.7 times as fast as oneDNN's packed one, most at 8 and 16
    rows; on a GPU for few rows, where it won against cuBLAS."""

    def __init__(self, weight: torch.Tensor):
        self._unpacked = (*weight.shape, weight.dtype)
        self._on_gpu = packing.on_gpu(weight.device)
        self.weight = ops.pack_weight(weight)

    def quantized_input(self, rows: int) -> Quantized:
        return NOTHING

    def __call__(self, x: torch.Tensor, out: torch.Tensor, quantized: Quantized = NOTHING) -> torch.Tensor:
        if self._on_gpu and len(x) >= MANY_ROWS:
            return torch.mm(x, ops.unpack_weight(self.weight, *self._unpacked).t(), out=out)
        ops.linear(x, None, self.weight, out)
        return out


class OneDnnLinear:
    """oneDNN's packed kernel, for processors with AMX, whose tiles our kernels do not use."""

    def __init__(self, weight: torch.Tensor):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def quantized_input(self, rows: int) -> Quantized:
        return NOTHING

    def __call__(self, x: torch.Tensor, out: torch.Tensor, quantized: Quantized = NOTHING) -> torch.Tensor:
        return out.copy_(torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], ""))


class QuantizedLinear:
    """int8 or fp8 weight, one scale per output; activations are quantised row by row on their way in."""

    def __init__(self, weight: QuantizedWeight, rows: QuantizedRows):
        self._rows, self._inputs = rows, weight.values.shape[1]
        self.weight = pack(weight)

    def quantized_input(self, rows: int) -> Quantized:
        return self._rows.buffers(rows, self._inputs)

    def __call__(self, x: torch.Tensor, out: torch.Tensor, quantized: Quantized = NOTHING) -> torch.Tensor:
        q, scale = self._rows.quantize(x) if quantized is NOTHING else quantized
        ops.linear(q, scale, self.weight, out)
        return out


Linear = DenseLinear | PackedLinear | OneDnnLinear | QuantizedLinear


def pack(weight: QuantizedWeight) -> torch.Tensor:
    """For ops.linear() and ops.row_stats_quantized()."""
    is_int8 = weight.values.dtype == torch.int8
    return (ops.pack_int8_weight if is_int8 else ops.pack_fp8_weight)(weight.values, weight.scale)


@dataclass(slots=True)
class GpuChoices:
    """What was measured on a GPU: the library's products, and by shape and type whether ours won."""

    products: ProductTuner | None = None
    packed_won: dict[tuple, bool] = field(default_factory=dict)


def make_linear(
    weight: torch.Tensor | QuantizedWeight, rows: QuantizedRows, choices: GpuChoices | None = None
) -> Linear:
    """The fastest layer for a weight [outputs, inputs], by where it is and of what type. choices: on a GPU;
    what they lack is measured here."""
    if isinstance(weight, QuantizedWeight):
        return QuantizedLinear(weight, rows)
    if weight.device.type == "cuda":
        return _fastest_on_gpu(weight, choices or GpuChoices())
    if packing.on_gpu(weight.device):
        return DenseLinear(weight)
    if weight.dtype == torch.bfloat16 and has_amx():
        return OneDnnLinear(weight)
    return PackedLinear(weight)


def _fastest_on_gpu(weight: torch.Tensor, choices: GpuChoices) -> DenseLinear | PackedLinear:
    dense, won = DenseLinear(weight, choices.products), choices.packed_won
    key = (*weight.shape, weight.dtype)
    if weight.dtype == torch.float32 or won.get(key) is False:  # our kernel has no float32
        return dense
    packed = PackedLinear(weight)
    if key not in won:
        with searching(choices.products):
            won[key] = packed_wins(time_on_gpu(packed, weight), time_on_gpu(dense, weight))
    return packed if won[key] else dense


def has_amx() -> bool:
    """Whether oneDNN can multiply bfloat16 in AMX tiles here."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_amx_tile_supported()
