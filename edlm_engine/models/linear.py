"""Linear layers y = x Wᵀ over a weight that was laid out once, when it was loaded."""

from dataclasses import dataclass

import torch

from .. import ops
from .quantization import QuantizedWeight


class QuantizedRows:
    """Room for the left side of an int8 product, shared by all layers of a model and kept between forwards.

    columns: the most that any layer's input has.
    """

    def __init__(self, columns: int):
        self._columns, self._bytes, self._scales = columns, torch.empty(0, dtype=torch.uint8), torch.empty(0)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: T [rows, columns] -> its bytes and scales (ops.quantize_rows), valid until the next call."""
        if len(x) > len(self._scales):
            rows = 1 << (len(x) - 1).bit_length()
            self._bytes = torch.empty(rows * self._columns, dtype=torch.uint8)
            self._scales = torch.empty(rows)
        q, scale = self._bytes[: x.numel()].view(x.shape), self._scales[: len(x)]
        ops.quantize_rows(x, q, scale)
        return q, scale


@dataclass(slots=True)
class DenseLinear:
    """torch's own product: on a GPU, cuBLAS."""

    weight: torch.Tensor  # [outputs, inputs]

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x: T [rows, inputs], out: T [rows, outputs]; returns out."""
        return torch.mm(x, self.weight.t(), out=out)


class PackedLinear:
    """The engine's own kernel: as fast as oneDNN's packed one at 16 rows and more, nearly twice at one."""

    def __init__(self, weight: torch.Tensor):
        self.weight = ops.pack_weight(weight)

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        ops.linear(x, None, self.weight, out)
        return out


class OneDnnLinear:
    """oneDNN's packed kernel, for processors with AMX, whose tiles our kernels do not use."""

    def __init__(self, weight: torch.Tensor):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], ""))


class Int8Linear:
    """int8 weight, one scale per output; activations are quantised row by row on their way in."""

    def __init__(self, weight: QuantizedWeight, rows: QuantizedRows):
        self._rows = rows
        self.weight = ops.pack_int8_weight(weight.values, weight.scale)

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        ops.linear(*self._rows.quantize(x), self.weight, out)
        return out


Linear = DenseLinear | PackedLinear | OneDnnLinear | Int8Linear


def make_linear(weight: torch.Tensor | QuantizedWeight, rows: QuantizedRows) -> Linear:
    """The fastest layer for a weight [outputs, inputs], by where it is and of what type."""
    if isinstance(weight, QuantizedWeight):
        return Int8Linear(weight, rows)
    if weight.device.type != "cpu":
        return DenseLinear(weight)
    if weight.dtype == torch.bfloat16 and has_amx():
        return OneDnnLinear(weight)
    return PackedLinear(weight)


def has_amx() -> bool:
    """Whether oneDNN can multiply bfloat16 in AMX tiles here."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_amx_tile_supported()
