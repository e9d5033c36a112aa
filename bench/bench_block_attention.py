import pytest
import torch
from op_cases import AttentionCase, Cache

from edlm_engine import ops

# length of the query block, kv_len; the last is a prompt read at once.
SHAPES = [(32, 512), (32, 2048), (32, 8192), (1, 2048), (512, 512)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "{}x{}".format(*shape))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("implementation", ["edlm", "torch"])
def bench(shape, dtype, implementation, benchmark, measure):
    """Qwen3-0.6B's heads: 16 and 8 of 128. torch: SDPA on a dense cache; gathering it is not counted."""
    length, kv_len = shape
    benchmark.group = f"block_attention, {str(dtype)[6:]}, {length} rows, {kv_len} keys"
    case = AttentionCase(16, Cache(8, 128, 64, (kv_len,)), ((0, length, kv_len, 0),))
    inputs = case.inputs(dtype)
    out = torch.empty(case.rows, 16, 128, dtype=dtype)
    pages = inputs["page_table"][0, : -(-kv_len // 64)].long()
    k, v = (
        inputs[name][pages].transpose(0, 1).flatten(1, 2)[None, :, :kv_len] for name in ("k_cache", "v_cache")
    )
    q = inputs["q"][1:].transpose(0, 1)[None].contiguous()
    ways = {
        "edlm": lambda: ops.block_attention(**inputs, scale=case.scale, out=out),
        "torch": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    }
    measure(ways[implementation], flops=4 * 16 * length * kv_len * 128, bytes_=2 * k.nbytes)
