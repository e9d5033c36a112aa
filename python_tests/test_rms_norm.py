import pytest
import torch
from op_cases import ROW_SHAPES, assert_close, tensor
from reference import ops as reference

from edlm_engine import ops

TOLERANCE = {torch.float32: (1e-6, 1e-6), torch.bfloat16: (2**-8, 1e-6)}  # bf16: half an ulp of the result


@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
@pytest.mark.parametrize("with_delta", [False, True])
def test_matches_reference(shape, with_delta, dtype, guarded):
    rows, hidden = shape
    x = guarded(rows, hidden, dtype=dtype).copy_(tensor(shape, dtype, 0, 3))
    delta = tensor(shape, dtype, 1) if with_delta else None
    weight = tensor((hidden,), dtype, 2)
    out = guarded(rows, hidden, dtype=dtype, fill=torch.nan)
    want_x, want_out = reference.rms_norm(x.clone(), delta, weight, 1e-5)
    ops.rms_norm(x, delta, weight, 1e-5, out)
    assert torch.equal(x, want_x)
    assert_close(out, want_out, *TOLERANCE[dtype])


@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
def test_quantised_on_the_way(shape, dtype, guarded):
    """The bytes and scales that quantize_rows makes of the result."""
    rows, hidden = shape
    x, delta, weight = tensor(shape, dtype, 0, 3), tensor(shape, dtype, 1), tensor((hidden,), dtype, 2)
    if rows > 2:
        x[1], x[2, 0] = 0, torch.nan
        delta[1] = 0
    out, q, scale = (
        torch.empty_like(x),
        guarded(rows, hidden, dtype=torch.uint8),
        guarded(rows, dtype=torch.float32),
    )
    want = torch.empty_like(x), torch.empty_like(q), torch.empty(rows)
    ops.rms_norm(x.clone(), delta, weight, 1e-5, want[0])
    ops.quantize_rows(want[0], *want[1:])
    ops.rms_norm(x.clone(), delta, weight, 1e-5, out, q, scale)
    for got, expected in zip((out, q, scale), want, strict=True):
        assert torch.equal(got.nan_to_num(-7), expected.nan_to_num(-7))


def test_zeros_and_nan():
    x = torch.zeros(2, 32)
    x[1, 3] = torch.nan
    out = torch.empty_like(x)
    ops.rms_norm(x, None, torch.ones(32), 1e-6, out)
    assert torch.equal(out[0], torch.zeros(32))
    assert bool(out[1].isnan().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x: want contiguous Float \[any, any\] on cpu, got Float \[2, 3, 4\]"),
        ({"x": torch.zeros(2, 32).half()}, "x: want Float or BFloat16, got Half"),
        (
            {"delta": torch.zeros(2, 31)},
            r"delta: want contiguous Float \[2, 32\] on cpu, got Float \[2, 31\]",
        ),
        ({"weight": torch.zeros(32).bfloat16()}, r"weight: want .*Float \[32\].*got BFloat16 \[32\]"),
        ({"q": torch.zeros(2, 32, dtype=torch.uint8)}, "q, scale: want both or neither"),
        (
            {"q": torch.zeros(2, 31, dtype=torch.uint8), "scale": torch.zeros(2)},
            r"q: want contiguous Byte \[2, 32\] on cpu, got Byte \[2, 31\]",
        ),
        ({"out": torch.zeros(32, 2).T}, r"out: want contiguous .* got non-contiguous Float \[2, 32\]"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"x": torch.zeros(2, 32), "delta": None, "weight": torch.zeros(32), "out": torch.zeros(2, 32)}
    with pytest.raises(ValueError, match=f"edlm::rms_norm: {message}"):
        ops.rms_norm(**arguments | change, eps=1e-6)
