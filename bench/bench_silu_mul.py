import pytest
import torch
from op_cases import tensor

from edlm_engine import ops


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("implementation", ["edlm", "torch"])
def bench(rows, implementation, benchmark, measure):
    benchmark.group = f"silu_mul, bf16 [{rows}, 2 * 3072]"
    gate_up = tensor((rows, 2 * 3072), torch.bfloat16, 0)
    out = torch.empty(rows, 3072, dtype=torch.bfloat16)
    gate, up = gate_up.chunk(2, dim=1)
    ways = {
        "edlm": lambda: ops.silu_mul(gate_up, out),
        "torch": lambda: torch.nn.functional.silu(gate).mul_(up),
    }
    measure(ways[implementation], bytes_=gate_up.nbytes + out.nbytes)
