import pytest
import torch
from op_cases import StatsCase

from edlm_engine import ops
from edlm_engine.models.linears import QuantizedRows
from edlm_engine.models.quantization import quantize_weight

SAMPLING = {
    "greedy": {},
    "sampled": {"temperature": 1.0},
    "top_k": {"temperature": 1.0, "top_k": 50},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
}


@pytest.mark.parametrize("rows", [1, 8, 32])
@pytest.mark.parametrize(
    "way", [*(f"edlm {name}" for name in (*SAMPLING, "int8")), "torch linear", "torch linear + softmax max"]
)
def bench(rows, way, benchmark, measure):
    """Qwen3-0.6B's head: hidden size 1024, 151,936 ids, bf16 (311 MB of weights)."""
    benchmark.group = f"row_stats, bf16, {rows} rows"
    case = StatsCase(rows, 1024, 151936, forbidden_id=151669, **SAMPLING.get(way.split()[1], {}))
    inputs = case.inputs(torch.bfloat16)
    ids, stats = torch.empty(rows, 2, dtype=torch.int32), torch.empty(rows, 5)
    linear = torch.nn.functional.linear
    if way == "edlm int8":
        weight = ops.pack_int8_weight(*quantize_weight(inputs["weight"]))
        rest = {k: v for k, v in inputs.items() if k not in ("hidden", "weight")} | {
            "ids": ids,
            "stats": stats,
        }
        hidden = QuantizedRows(1024)
        head = {"weight": weight, "vocab": 151936, **rest}

        def work():
            q, scale = hidden.quantize(inputs["hidden"])
            ops.row_stats_quantized(hidden=q, hidden_scale=scale, **head)

    elif way.startswith("edlm"):
        work = lambda: ops.row_stats(**inputs, ids=ids, stats=stats)  # noqa: E731
    elif way == "torch linear":
        work = lambda: linear(inputs["hidden"], inputs["weight"])  # noqa: E731
    else:
        work = lambda: linear(inputs["hidden"], inputs["weight"]).float().softmax(-1).max(-1)  # noqa: E731
    measure(work, flops=2 * inputs["weight"].numel() * rows, bytes_=inputs["weight"].nbytes)
