"""The language-model head: from hidden rows to the statistics of their logits."""

from dataclasses import dataclass

import torch

from .. import ops
from .linears import QuantizedRows, pack
from .quantization import QuantizedWeight


@dataclass(slots=True)
class Head:
    """weight: T [vocab, hidden]; the embedding's own tensor if tied."""

    weight: torch.Tensor

    def row_stats(self, hidden: torch.Tensor, *arguments) -> None:
        """hidden: T [n, hidden]; arguments: ops.row_stats' from state on."""
        ops.row_stats(hidden, self.weight, *arguments)


class QuantizedHead:
    """The same over int8 or fp8 weights: half the bytes, and twice the rate."""

    def __init__(self, weight: QuantizedWeight, rows: QuantizedRows):
        self._rows, self._vocab = rows, len(weight.values)
        self.weight = pack(weight)

    def row_stats(self, hidden: torch.Tensor, *arguments) -> None:
        ops.row_stats_quantized(*self._rows.quantize(hidden), self.weight, self._vocab, *arguments)
