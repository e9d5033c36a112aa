"""The roofline: what this machine multiplies and reads at best, and what the linear layers reach of it."""

from __future__ import annotations

import torch
from cases import SIZES
from timing import answer, median_ms

from edlm_engine import ops
from edlm_engine.models.linear import Int8Linear, PackedLinear, QuantizedRows
from edlm_engine.models.quantization import quantize_weight

MANY = 1024  # rows and columns of the products that show the peak


def product_rate(kind: str) -> float:
    """GFLOP/s (or GOP/s) of the best large product at hand."""
    x, weight = torch.randn(MANY, MANY).bfloat16(), torch.randn(4 * MANY, MANY).bfloat16()
    rows, out = QuantizedRows(MANY), torch.empty(MANY, 4 * MANY, dtype=torch.bfloat16)
    if kind == "bf16":
        ours = PackedLinear(weight)
        calls = [lambda: ours(x, out), lambda: torch.nn.functional.linear(x, weight)]
    else:
        packed = ops.pack_int8_weight(*quantize_weight(weight))
        q, scale = rows.quantize(x)
        a, b = x.to(torch.int8), weight.to(torch.int8).t().contiguous()
        calls = [lambda: ops.linear(q, scale, packed, out), lambda: torch._int_mm(a, b)]
    return 2 * MANY * MANY * 4 * MANY / min(median_ms(call, seconds=1) for call in calls) / 1e6


def read_rate() -> float:
    """GB/s of summing a gigabyte."""
    data = torch.ones(1 << 28)
    return data.nbytes / median_ms(lambda: data.sum()) / 1e6


def layer_rate(size: str, kind: str, count: int) -> tuple[float, float]:
    """(GFLOP/s, GB/s of weights) of a layer's four matrices at so many rows, quantisation included, over
    enough copies that none is in a cache."""
    hidden, inner = SIZES[size]
    shapes = [(4096, hidden), (hidden, 2048), (2 * inner, hidden), (hidden, inner)]
    rows, layers = QuantizedRows(inner), []
    for _ in range(6):
        for outputs, inputs in shapes:
            weight = torch.randn(outputs, inputs).bfloat16()
            layer = PackedLinear(weight) if kind == "bf16" else Int8Linear(quantize_weight(weight), rows)
            x, out = torch.randn(count, inputs).bfloat16(), torch.empty(count, outputs, dtype=torch.bfloat16)
            layers.append((layer, x, out))

    def forward():
        for layer, x, out in layers:
            layer(x, out)

    ms = median_ms(forward)
    flops = sum(2 * x.numel() * out.shape[1] for _, x, out in layers)
    return flops / ms / 1e6, sum(layer.weight.nbytes for layer, _, _ in layers) / ms / 1e6


def measure(job: dict) -> dict:
    torch.set_num_threads(job["threads"])
    peaks = {
        "bf16 GFLOP/s": product_rate("bf16"),
        "int8 GOP/s": product_rate("int8"),
        "read GB/s": read_rate(),
    }
    linears = {}
    for kind, peak in (("bf16", peaks["bf16 GFLOP/s"]), ("int8", peaks["int8 GOP/s"])):
        for count in (1, 8, 32):
            rate, bytes_rate = layer_rate("1.7B", kind, count)
            linears[f"{kind}, {count} rows"] = {
                "gflop_per_s": rate,
                "of_peak": rate / peak,
                "gb_per_s": bytes_rate,
                "of_read": bytes_rate / peaks["read GB/s"],
            }
    return {"peaks": peaks, "linears of 1.7B": linears}


if __name__ == "__main__":
    answer(measure)
