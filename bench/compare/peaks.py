"""The roofline: what this machine multiplies and reads at best, and what the linear layers reach of it."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import torch
from cases import SIZES
from timing import answer, median_ms

from edlm_engine import ops
from edlm_engine.models.linears import PackedLinear, QuantizedLinear, QuantizedRows
from edlm_engine.models.quantization import quantize_weight

MANY = 1024  # rows and columns of the products that show the peak


def register_rates(threads: int) -> dict[str, float] | None:
    """{"bf16", "int8"}: GFLOP/s of so many threads from registers alone; None without AVX-512 or compiler."""
    flags = ["-O2", "-std=c++17", "-mavx512f", "-mavx512bf16", "-mavx512vnni"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        try:
            subprocess.run(
                ["c++", *flags, Path(__file__).with_name("peak.cpp"), "-o", program],
                check=True,
                capture_output=True,
            )
            runs = [subprocess.Popen([program], stdout=subprocess.PIPE, text=True) for _ in range(threads)]
            rates = [[float(rate) for rate in run.communicate()[0].split()] for run in runs]
        except (OSError, subprocess.CalledProcessError):
            return None
    if not all(len(own) == 2 for own in rates):
        return None  # an instruction that this machine lacks
    return dict(zip(("bf16", "int8"), map(sum, zip(*rates, strict=True)), strict=True))


def product_rate(kind: str) -> float:
    """GFLOP/s (or GOP/s) of the best large product at hand: where nothing better tells the peak."""
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
            layer = PackedLinear(weight) if kind == "bf16" else QuantizedLinear(quantize_weight(weight), rows)
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
    rates = register_rates(job["threads"]) or {kind: product_rate(kind) for kind in ("bf16", "int8")}
    peaks = {
        "bf16 GFLOP/s": rates["bf16"],
        "int8 GOP/s": rates["int8"],
        "read GB/s": read_rate(),
    }
    linears = {}
    for kind, peak in (("bf16", peaks["bf16 GFLOP/s"]), ("int8", peaks["int8 GOP/s"])):
        for count in (1, 8, 16, 32, 64):
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
