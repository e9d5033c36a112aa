import pytest
import torch
from op_cases import ROW_SHAPES, assert_close, tensor
from reference import ops as reference

from edlm_engine import ops

TOLERANCE = {torch.float32: (2e-6, 1e-7), torch.bfloat16: (2**-8, 1e-7)}  # bf16: half an ulp of the result


@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
def test_matches_reference(shape, dtype, guarded):
    rows, inner = shape
    gate_up = tensor((rows, 2 * inner), dtype, 0, 5)
    out = guarded(rows, inner, dtype=dtype, fill=torch.nan)
    ops.silu_mul(gate_up, out)
    assert_close(out, reference.silu_mul(gate_up), *TOLERANCE[dtype])


@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
def test_quantised_on_the_way(shape, dtype, guarded):
    """The bytes and scales that quantize_rows makes of the result."""
    rows, inner = shape
    gate_up = tensor((rows, 2 * inner), dtype, 0, 5)
    out, q = torch.empty(rows, inner, dtype=dtype), guarded(rows, inner, dtype=torch.uint8)
    scale, want = (
        guarded(rows, dtype=torch.float32),
        (torch.empty_like(out), torch.empty_like(q), torch.empty(rows)),
    )
    ops.silu_mul(gate_up, want[0])
    ops.quantize_rows(want[0], *want[1:])
    ops.silu_mul(gate_up, out, q, scale)
    for got, expected in zip((out, q, scale), want, strict=True):
        assert torch.equal(got, expected)


def test_extreme_gates():
    """Far from 0 silu is 0 or the gate itself, with no overflow on the way; NaN stays NaN."""
    gate = torch.tensor([-1e30, -200.0, -90.0, 0.0, 90.0, 1e30, torch.nan, 1.0])
    out = torch.empty(1, 8)
    ops.silu_mul(torch.cat((gate, torch.ones(8)))[None], out)
    assert_close(out[0], torch.tensor([0, 0, 0, 0, 90, 1e30, torch.nan, 0.7310586]), 1e-6, 1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"edlm::silu_mul: gate_up: want .*\[2, 8\].* got Float \[2, 7\]"):
        ops.silu_mul(torch.zeros(2, 7), torch.zeros(2, 4))
