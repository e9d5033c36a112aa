import pytest
import torch
from op_cases import tensor

from edlm_engine import ops


@pytest.mark.parametrize("rows", [1, 32, 256])
@pytest.mark.parametrize("implementation", ["edlm", "torch"])
def bench(rows, implementation, benchmark, measure):
    benchmark.group = f"residual add + rms_norm, bf16 [{rows}, 1024]"
    x, delta = (tensor((rows, 1024), torch.bfloat16, seed) for seed in (0, 1))
    weight, out = torch.ones(1024, dtype=torch.bfloat16), torch.empty_like(x)

    def torch_way():
        x.add_(delta)
        torch.nn.functional.rms_norm(x, (1024,), weight, 1e-6)

    ways = {"edlm": lambda: ops.rms_norm(x, delta, weight, 1e-6, out), "torch": torch_way}
    measure(ways[implementation], bytes_=4 * x.nbytes)
