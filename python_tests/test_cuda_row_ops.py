"""rms_norm, silu_mul and qkv_prepare: the CUDA kernels under host_sim against the reference."""

import pytest
import torch
from host_sim import DTYPES, HostSim, SimulatorError, close, poisoned
from reference import ops as reference

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
ABSURD_PAGE = 2147480000


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def simulator(request) -> HostSim:
    return HostSim(request.param)


def normal(seed: int, *shape: int, dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPE
@pytest.mark.parametrize("with_delta", [True, False])
@pytest.mark.parametrize(
    ("rows", "hidden"), [(1, 8), (3, 100), (2, 256), (5, 33), (2, 2560), (1, 4104), (1, 8200)]
)
def test_rms_norm(simulator, dtype, rows, hidden, with_delta):
    x, weight = normal(1, rows, hidden, dtype=dtype), normal(2, hidden, dtype=dtype)
    delta = normal(3, rows, hidden, dtype=dtype) if with_delta else None
    new_x, want = reference.rms_norm(x, delta, weight, 1e-6)
    out = poisoned(rows, hidden, dtype=dtype)
    simulator.run("rms_norm", 1, ["x", "out"], dtype=DTYPES[dtype], rows=rows, hidden=hidden, eps=1e-6, x=x,
                  delta=delta, weight=weight, out=out)  # fmt: skip
    assert torch.equal(x, new_x)
    assert close(out, want, dtype)


QUANTISED = {torch.uint8: (3, reference.quantize_rows), torch.float8_e4m3fn: (4, reference.quantize_rows_fp8)}
Q = pytest.mark.parametrize("q_dtype", QUANTISED, ids=["int8", "fp8"])


def assert_quantised(out, q, scale):
    """What quantize_rows makes of `out`, to the bit."""
    want_q, want_scale = QUANTISED[q.dtype][1](out)
    assert torch.equal(q.view(torch.uint8), want_q.view(torch.uint8))
    assert torch.equal(scale.nan_to_num(-7), want_scale.nan_to_num(-7))


@DTYPE
@Q
@pytest.mark.parametrize(("rows", "hidden"), [(1, 8), (3, 100), (5, 33), (2, 2560), (1, 8200)])
def test_rms_norm_quantised_on_the_way(simulator, dtype, q_dtype, rows, hidden):
    x, weight = normal(1, rows, hidden, dtype=dtype), normal(2, hidden, dtype=dtype)
    x[-1, 0] = torch.nan if rows > 2 else 1
    out, scale = poisoned(rows, hidden, dtype=dtype), poisoned(rows)
    q = torch.full((rows, hidden), 99, dtype=torch.uint8).view(q_dtype)
    simulator.run("rms_norm", 1, ["x", "out", "q", "scale"], dtype=DTYPES[dtype], rows=rows, hidden=hidden,
                  eps=1e-6, x=x, weight=weight, out=out, q=q, scale=scale,
                  q_dtype=QUANTISED[q_dtype][0])  # fmt: skip
    finite = slice(0, rows - (rows > 2))
    assert_quantised(out[finite], q[finite], scale[finite])
    assert close(out[finite], reference.rms_norm(x, None, weight, 1e-6)[1][finite], dtype)
    assert bool(scale[-1].isnan()) == (rows > 2)


def test_rms_norm_of_too_long_rows_is_refused(simulator):
    x = torch.zeros(1, 16512)
    with pytest.raises(SimulatorError, match="rows are too long"):
        simulator.run("rms_norm", dtype=0, rows=1, hidden=16512, eps=1e-6, x=x, weight=x, out=x)


@DTYPE
@pytest.mark.parametrize(("rows", "inner"), [(1, 8), (3, 100), (7, 33), (2, 2048)])
def test_silu_mul(simulator, dtype, rows, inner):
    gate_up = normal(4, rows, 2 * inner, dtype=dtype) * 8
    gate_up[0, 0], gate_up[-1, 1] = -200, 200
    out = poisoned(rows, inner, dtype=dtype)
    simulator.run(
        "silu_mul", 1, ["out"], dtype=DTYPES[dtype], rows=rows, inner=inner, gate_up=gate_up, out=out
    )
    assert close(out, reference.silu_mul(gate_up), dtype)


@DTYPE
@Q
@pytest.mark.parametrize(("rows", "inner"), [(1, 8), (3, 100), (7, 33), (2, 2048), (1, 4104), (1, 33000)])
def test_silu_mul_quantised_on_the_way(simulator, dtype, q_dtype, rows, inner):
    """The last of them are too long for one block's registers."""
    gate_up = normal(4, rows, 2 * inner, dtype=dtype) * 8
    out, scale = poisoned(rows, inner, dtype=dtype), poisoned(rows)
    q = torch.full((rows, inner), 99, dtype=torch.uint8).view(q_dtype)
    simulator.run("silu_mul", 1, ["out", "q", "scale"], dtype=DTYPES[dtype], rows=rows, inner=inner,
                  gate_up=gate_up, out=out, q=q, scale=scale, q_dtype=QUANTISED[q_dtype][0])  # fmt: skip
    assert_quantised(out, q, scale)
    assert close(out, reference.silu_mul(gate_up), dtype)


@DTYPE
@pytest.mark.parametrize(("bias", "norm"), [(True, False), (False, True), (False, False), (True, True)])
@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), [(64, 4, 1), (128, 6, 2), (64, 3, 3)])
def test_qkv_prepare(simulator, dtype, bias, norm, head_dim, heads, kv_heads):
    rows, page_size, pages, max_pages, max_positions = 7, 16, 6, 4, 64
    width = (heads + 2 * kv_heads) * head_dim
    slots = torch.tensor([0, 0, 1, -1, 1, 1, 0], dtype=torch.int32)
    positions = torch.tensor([15, 16, 0, 3, 31, 32, 17], dtype=torch.int32)
    page_table = torch.full((2, max_pages), ABSURD_PAGE, dtype=torch.int32)
    page_table[0, :2], page_table[1, :3] = torch.tensor([4, 1]), torch.tensor([0, 5, 2])
    caches = [poisoned(pages, kv_heads, page_size, head_dim, dtype=dtype) for _ in range(2)]
    arguments = {
        "qkv": normal(5, rows, width, dtype=dtype),
        "bias": normal(6, width, dtype=dtype) if bias else None,
        "q_norm": normal(7, head_dim, dtype=dtype) if norm else None,
        "k_norm": normal(8, head_dim, dtype=dtype) if norm else None,
        "cos_sin": normal(9, max_positions, head_dim, dtype=torch.float32),
    }
    want_q, *want_caches = reference.qkv_prepare(
        **arguments, slots=slots, positions=positions, page_table=page_table, k_cache=caches[0],
        v_cache=caches[1], heads=heads, eps=1e-6,
    )  # fmt: skip
    q = poisoned(rows, heads, head_dim, dtype=dtype)
    simulator.run(
        "qkv_prepare", 2, ["q", "k_cache", "v_cache"], dtype=DTYPES[dtype], rows=rows, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, eps=1e-6, **arguments, row_slots=slots, positions=positions,
        page_table=page_table, slots=2, max_pages=max_pages, pages=pages, page_size=page_size,
        k_cache=caches[0], v_cache=caches[1], q=q,
    )  # fmt: skip
    used = slots >= 0
    assert close(q[used], want_q[used], dtype)
    assert q[~used].isnan().all()
    for cache, want in zip(caches, want_caches, strict=True):
        assert torch.equal(cache.isnan(), want.isnan())
        assert close(cache.nan_to_num(0), want.nan_to_num(0), dtype)


def test_qkv_prepare_names_the_head_sizes_it_has(simulator):
    with pytest.raises(SimulatorError, match="want a head size of 64 or 128"):
        x = torch.zeros(1)
        simulator.run(
            "qkv_prepare", dtype=0, rows=1, heads=1, kv_heads=1, head_dim=96, eps=1e-6, qkv=x, cos_sin=x,
            row_slots=x, positions=x, page_table=x, slots=1, max_pages=1, pages=1, page_size=16,
            k_cache=x, v_cache=x, q=x,
        )  # fmt: skip
