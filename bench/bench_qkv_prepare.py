import pytest
import torch
from op_cases import Cache, QkvCase

from edlm_engine import ops


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("implementation", ["edlm", "torch"])
def bench(rows, implementation, benchmark, measure):
    """Qwen3-0.6B's attention shape: 16 and 8 heads of 128, norms of q and k."""
    benchmark.group = f"qkv_prepare, bf16, {rows} rows"
    case = QkvCase(16, Cache(8, 128, 64, (256 + rows,)), (256,), norm=True)
    inputs = case.inputs(torch.bfloat16)
    inputs |= {name: inputs[name][1:-1].contiguous() for name in ("qkv", "slots", "positions")}
    q = torch.empty(rows, 16, 128, dtype=torch.bfloat16)
    pages = inputs["page_table"][0, inputs["positions"] // 64].long()
    offsets = inputs["positions"].long() % 64
    cos, sin = (
        part.repeat(1, 2)[inputs["positions"].long(), None].bfloat16()
        for part in inputs["cos_sin"].chunk(2, 1)
    )

    def rotate(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-b, a), dim=-1) * sin

    def torch_way():
        q, k, v = inputs["qkv"].view(rows, 32, 128).split((16, 8, 8), dim=1)
        rotate(torch.nn.functional.rms_norm(q, (128,), inputs["q_norm"], 1e-6))
        k = rotate(torch.nn.functional.rms_norm(k, (128,), inputs["k_norm"], 1e-6))
        inputs["k_cache"][pages, :, offsets] = k
        inputs["v_cache"][pages, :, offsets] = v

    ways = {"edlm": lambda: ops.qkv_prepare(**inputs, q=q, eps=1e-6), "torch": torch_way}
    measure(ways[implementation], bytes_=2 * inputs["qkv"].nbytes)
