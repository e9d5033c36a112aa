import pytest
import torch

from edlm_engine import ops
from edlm_engine.models.linears import OneDnnLinear, PackedLinear, QuantizedLinear, QuantizedRows
from edlm_engine.models.quantization import quantize_weight

SHAPES = {"gate_up of 0.6B": (1024, 6144), "down of 0.6B": (3072, 1024), "gate_up of 1.7B": (2048, 12288)}
COPIES_BYTES = 100 << 20  # of weights in turn, so that none is in a cache


class OneDnnInt8:
    """oneDNN's int8 product through torch: one scale for all rows, unlike ours."""

    def __init__(self, weight: torch.Tensor):
        values, self.scale = quantize_weight(weight)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.weight = torch.ops.onednn.qlinear_prepack(values, None)

    def __call__(self, q: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            q, 0.01, 128, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
        )


@pytest.mark.parametrize("rows", [1, 8, 16, 32, 64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["edlm bf16", "torch onednn bf16", "edlm int8", "torch onednn int8"])
def bench(shape, rows, way, benchmark, measure):
    """bf16 beside oneDNN's packed product; int8 with the quantisation of the rows, oneDNN's without."""
    benchmark.group = f"linear, {way.split()[-1]}, {shape}, {rows} rows"
    inputs, outputs = SHAPES[shape]
    x, out = torch.randn(rows, inputs).bfloat16(), torch.empty(rows, outputs, dtype=torch.bfloat16)
    scratch = QuantizedRows(inputs)
    q = scratch.quantize(x)[0].clone()
    make = {
        "edlm bf16": lambda w: (PackedLinear(w), (x, out)),
        "torch onednn bf16": lambda w: (OneDnnLinear(w), (x, out)),
        "edlm int8": lambda w: (QuantizedLinear(quantize_weight(w), scratch), (x, out)),
        "torch onednn int8": lambda w: (OneDnnInt8(w), (q,)),
    }[way]
    size = inputs * outputs * (2 if way.endswith("bf16") else 1)
    layers = [make(torch.randn(outputs, inputs).bfloat16()) for _ in range(max(2, COPIES_BYTES // size))]
    turn = 0

    def work():
        nonlocal turn
        turn = (turn + 1) % len(layers)
        layer, arguments = layers[turn]
        layer(*arguments)

    measure(work, flops=2 * rows * inputs * outputs, bytes_=size)


@pytest.mark.parametrize("rows", [1, 32])
def bench_quantize_rows(rows, benchmark, measure):
    benchmark.group = f"quantize_rows, bf16, {rows} rows of 3072"
    x = torch.randn(rows, 3072).bfloat16()
    q, scale = torch.empty(x.shape, dtype=torch.uint8), torch.empty(rows)
    measure(lambda: ops.quantize_rows(x, q, scale), bytes_=x.nbytes + q.nbytes)
