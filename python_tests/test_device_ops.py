"""Every op on every device there is, against the reference, over the cases of op_cases."""

import pytest
import torch
from op_cases import (
    ADVANCE_CASES,
    ATTENTION_CASES,
    QKV_CASES,
    ROW_SHAPES,
    STATS_CASES,
    advance_state,
    assert_close,
    tensor,
    unmask_state,
)

from edlm_engine import ops, reference

HAS_CUDA = ops.build_info()["cuda"] and torch.cuda.is_available()
no_cuda = pytest.mark.skipif(not HAS_CUDA, reason="needs a GPU and a build with CUDA kernels")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (2**-6, 2**-7), torch.float16: (2**-9, 2**-9)}
CUDA_HEAD_SIZES = (64, 128)
SMALL = {"qwen2", "one_row", "fused", "split", "odd", "top_k_p", "autoregressive", "shift", str((3, 41))}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=no_cuda)])
def device(request) -> str:
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request, device) -> torch.dtype:
    if request.param == "fp16" and device == "cpu":
        pytest.skip("the CPU kernels have no float16")
    return DTYPES[request.param]


def cases(named: dict):
    """Parametrizes `case`; the names of small cases say so."""
    names = [f"small_{name}" if name in SMALL else name for name in map(str, named)]
    return pytest.mark.parametrize("case", named.values(), ids=names)


def to(device: str, inputs: dict) -> dict:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }


def skip_head_size(device: str, head_dim: int):
    if device == "cuda" and head_dim not in CUDA_HEAD_SIZES:
        pytest.skip(f"no CUDA kernel for a head size of {head_dim}")


@cases({str(shape): shape for shape in ROW_SHAPES})
def test_row_ops(case, dtype, device):
    x, delta = tensor(case, dtype, 0, 3), tensor(case, dtype, 1)
    weight, out = tensor(case[1:], dtype, 2), torch.full(case, torch.nan, dtype=dtype, device=device)
    want_x, want = reference.rms_norm(x.clone(), delta, weight, 1e-5)
    x = x.to(device)
    ops.rms_norm(x, delta.to(device), weight.to(device), 1e-5, out)
    assert torch.equal(x.cpu(), want_x)
    assert_close(out.cpu(), want, *TOLERANCE[dtype])
    gate_up = tensor((case[0], 2 * case[1]), dtype, 3, 4)
    out = torch.full(case, torch.nan, dtype=dtype, device=device)
    ops.silu_mul(gate_up.to(device), out)
    assert_close(out.cpu(), reference.silu_mul(gate_up), *TOLERANCE[dtype])


@cases(QKV_CASES)
def test_qkv_prepare(case, dtype, device):
    skip_head_size(device, case.cache.head_dim)
    inputs = case.inputs(dtype)
    want = reference.qkv_prepare(**inputs, heads=case.heads, eps=1e-6)
    used = inputs["slots"] >= 0
    inputs = to(device, inputs)
    q = torch.full((len(used), case.heads, case.cache.head_dim), torch.nan, dtype=dtype, device=device)
    ops.qkv_prepare(**inputs, q=q, eps=1e-6)
    assert bool(q.cpu()[~used].isnan().all())
    assert_close(q.cpu()[used], want[0][used], *TOLERANCE[dtype])
    for name, cache in zip(("k_cache", "v_cache"), want[1:], strict=True):
        assert_close(inputs[name].cpu(), cache, *TOLERANCE[dtype])


@cases(ATTENTION_CASES)
def test_block_attention(case, dtype, device):
    skip_head_size(device, case.cache.head_dim)
    inputs = case.inputs(dtype)
    want = reference.block_attention(**inputs, scale=case.scale)
    out = torch.full(inputs["q"].shape, 9.0, dtype=dtype, device=device)
    ops.block_attention(**to(device, inputs), scale=case.scale, out=out)
    assert bool((out[0] == 9).all())
    assert_close(out[1:].cpu(), want[1:], *TOLERANCE[dtype])


@cases(STATS_CASES)
def test_row_stats(case, dtype, device):
    inputs = case.inputs(dtype)
    want_ids, want_stats = reference.row_stats(**inputs)
    ids = torch.zeros(case.rows, 2, dtype=torch.int32, device=device)
    stats = torch.full((case.rows, 5), torch.nan, device=device)
    ops.row_stats(**to(device, inputs), ids=ids, stats=stats)
    assert torch.equal(ids.cpu(), want_ids)
    assert_close(stats.cpu(), want_stats, 1e-3, 1e-4)


@pytest.mark.parametrize("seed", range(8), ids=lambda s: "small_0" if s == 0 else str(s))
def test_unmask(seed, device):
    state = unmask_state(slots=24, max_block=(1, 4, 16, 32)[seed % 4], seed=seed)
    want = {name: value.clone() for name, value in state.items()}
    reference.unmask(**want)
    state = to(device, state)
    ops.unmask(**state)
    for name, value in want.items():
        assert torch.equal(state[name].cpu().nan_to_num(-9), value.nan_to_num(-9)), name


@pytest.mark.parametrize("seed", range(3))
@cases(ADVANCE_CASES)
def test_advance(case, seed, device):
    slots, batch, max_block, switches = case
    want = advance_state(slots, batch, max_block, seed, **switches)
    got = to(device, advance_state(slots, batch, max_block, seed, **switches))
    if device == "cuda":  # what the host reads while the device goes on
        got |= {name: want[name].clone().pin_memory() for name in ("ring", "host")}
    reference.advance(**want)
    ops.advance(**got)
    if device == "cuda":
        torch.cuda.synchronize()
    for name, value in want.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[name].cpu(), value), name


@no_cuda
def test_cuda_names_the_head_sizes_it_has():
    case = ATTENTION_CASES["causal"]
    with pytest.raises(ValueError, match="want a head size of 64 or 128"):
        out = torch.empty(case.rows, case.heads, case.cache.head_dim, device="cuda")
        ops.block_attention(**to("cuda", case.inputs(torch.float32)), scale=1.0, out=out)


@no_cuda
def test_all_tensors_on_one_device():
    x = torch.zeros(1, 64, device="cuda")
    message = r"weight: want contiguous Float \[64\] on cuda:0, got Float \[64\] on another device"
    with pytest.raises(ValueError, match=message):
        ops.rms_norm(x, None, torch.ones(64), 1e-6, x.clone())


@no_cuda
@pytest.mark.parametrize("name", ["rms_norm", "block_attention", "row_stats"])
def test_cuda_opcheck(name):
    torch.manual_seed(0)
    if name == "rms_norm":
        x = torch.randn(3, 64, device="cuda")
        arguments = (x, None, torch.ones(64, device="cuda"), 1e-6, torch.empty_like(x))
    elif name == "block_attention":
        case = ATTENTION_CASES["one_row"]
        inputs = to("cuda", case.inputs(torch.float32))
        arguments = (*inputs.values(), case.scale, torch.empty_like(inputs["q"]))
    else:
        case = STATS_CASES["odd"]
        inputs = to("cuda", case.inputs(torch.float32))
        results = (torch.empty(3, 2, dtype=torch.int32, device="cuda"), torch.empty(3, 5, device="cuda"))
        arguments = (*inputs.values(), *results)
    torch.library.opcheck(getattr(torch.ops.edlm, name).default, arguments)
