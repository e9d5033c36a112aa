"""Every op on every device there is, against the reference, over the cases of op_cases."""

import pytest
import torch
from op_cases import (
    ADVANCE_CASES,
    ATTENTION_CASES,
    QKV_CASES,
    ROW_SHAPES,
    STATS_CASES,
    StatsCase,
    advance_state,
    assert_close,
    tensor,
    unmask_state,
)
from reference import ops as reference

from edlm_engine import ops, packing
from edlm_engine.models.quantization import DTYPES as DTYPES_OF_KIND
from edlm_engine.models.quantization import quantize_weight

HAS_CUDA = ops.build_info()["cuda"] and torch.cuda.is_available()
no_cuda = pytest.mark.skipif(not HAS_CUDA, reason="needs a GPU and a build with CUDA kernels")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (2**-6, 2**-7), torch.float16: (2**-9, 2**-9)}
CUDA_HEAD_SIZES = (64, 128)
SMALL = {
    "qwen2",
    "one_row",
    "fused",
    "split",
    "odd",
    "top_k_p",
    "autoregressive",
    "shift",
    str((3, 41)),
    str((3, 100, 33)),
    str((33, 1028, 130)),
}


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


def simulated() -> bool:
    """Whether the CPU's tensors count as a GPU's: test_cuda_simulated runs this file so."""
    return packing.on_gpu(torch.device("cpu"))


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


LINEAR_CASES = {str(shape): shape for shape in ((3, 100, 33), (1, 2560, 64), (33, 1028, 130), (300, 192, 70))}


def quantised(x, kind: str, device: str):
    """Rows and scales by the op, on the device, checked against the reference."""
    twin = {"int8": reference.quantize_rows, "fp8": reference.quantize_rows_fp8}[kind]
    want, want_scale = twin(x)
    q, scale = torch.empty_like(want, device=device), torch.empty(len(x), device=device)
    ops.quantize_rows(x.to(device), q, scale)
    assert torch.equal(q.cpu().view(torch.uint8), want.view(torch.uint8))
    assert torch.equal(scale.cpu(), want_scale)
    return q, scale


def packed(weight, kind: str, device: str):
    pack = ops.pack_int8_weight if kind == "int8" else ops.pack_fp8_weight
    return pack(weight.values.to(device), weight.scale.to(device))


def skip_fp8(kind: str, device: str):
    fp8_runs = simulated() or (device == "cuda" and torch.cuda.get_device_capability() >= (8, 9))
    if kind == "fp8" and not fp8_runs:
        pytest.skip("float8 needs a GPU of compute capability 8.9 or later")


@cases(LINEAR_CASES)
@pytest.mark.parametrize("kind", DTYPES_OF_KIND)
def test_quantised_linear(case, kind, dtype, device):
    skip_fp8(kind, device)
    rows, inputs, outputs = case
    x, wide = tensor((rows, inputs), dtype, 0), tensor((outputs, inputs), dtype, 1, inputs**-0.5)
    weight = quantize_weight(wide, DTYPES_OF_KIND[kind])
    q, scale = quantised(x, kind, device)
    results = []
    for out_dtype in (torch.float32, dtype):
        results.append(torch.full((rows, outputs), torch.nan, dtype=out_dtype, device=device))
        ops.linear(q, scale, packed(weight, kind, device), results[-1])
    if kind == "int8":
        want = reference.int8_linear(q.cpu(), scale.cpu(), *weight)
        assert torch.equal(results[0].cpu(), want)
    else:
        want = reference.fp8_linear(q.cpu(), scale.cpu(), *weight)
        assert_close(results[0].cpu(), want, 1e-3, 1e-3)
    assert torch.equal(results[1].cpu(), results[0].cpu().to(dtype))


@cases(LINEAR_CASES)
def test_linear(case, dtype, device):
    if dtype == torch.float32 and (device == "cuda" or simulated()):
        pytest.skip("cuBLAS multiplies float32")
    rows, inputs, outputs = case
    x, weight = tensor((rows, inputs), dtype, 0), tensor((outputs, inputs), dtype, 1, inputs**-0.5)
    out = torch.full((rows, outputs), torch.nan, dtype=dtype, device=device)
    weight_there = ops.pack_weight(weight.to(device))
    ops.linear(x.to(device), None, weight_there, out)
    assert_close(out.cpu(), x.double() @ weight.double().T, *TOLERANCE[dtype])
    first = torch.full((1, outputs), torch.nan, dtype=dtype, device=device)
    ops.linear(x[:1].to(device), None, weight_there, first)
    assert torch.equal(first, out[:1])  # whatever the other rows


@pytest.mark.parametrize("kind", DTYPES_OF_KIND, ids=lambda kind: f"small_{kind}")
def test_quantised_row_stats(kind, device):
    skip_fp8(kind, device)
    inputs = StatsCase(35, 128, 3001, forbidden_id=17, temperature=1.5, top_k=20).inputs(torch.float32)
    weight = quantize_weight(inputs["weight"], DTYPES_OF_KIND[kind])
    q, scale = quantised(inputs["hidden"], kind, device)
    exact = {"int8": reference.int8_linear, "fp8": reference.fp8_linear}[kind](q.cpu(), scale.cpu(), *weight)
    want = reference.row_stats(**inputs | {"hidden": torch.eye(35), "weight": exact.T.contiguous()})
    ids, stats = torch.zeros(35, 2, dtype=torch.int32, device=device), torch.zeros(35, 5, device=device)
    del inputs["hidden"], inputs["weight"]
    ops.row_stats_quantized(
        q, scale, packed(weight, kind, device), 3001, **to(device, inputs), ids=ids, stats=stats
    )
    assert torch.equal(ids.cpu(), want[0])
    assert_close(stats.cpu(), want[1], 1e-3, 1e-4)


@pytest.mark.parametrize("seed", range(8), ids=lambda s: "small_0" if s == 0 else str(s))
def test_unmask(seed, device):
    want, *rows = unmask_state(slots=24, max_block=(1, 4, 16, 32)[seed % 4], seed=seed)
    records = want.records.to(device, copy=True)
    reference.unmask(want, *rows)
    ops.unmask(records, *(tensor.to(device) for tensor in rows))
    assert torch.equal(records.cpu(), want.records)


@pytest.mark.parametrize("seed", range(3))
@cases(ADVANCE_CASES)
def test_advance(case, seed, device):
    slots, batch, max_block, switches = case
    want = advance_state(slots, batch, max_block, seed, **switches)
    got = want.clone(device)
    reference.advance(want.state, want.buffer, want.control, want.link, want.flags)
    ops.advance(*got.arguments())
    if device == "cuda":
        torch.cuda.synchronize()
    for name, value in want.tensors().items():
        assert torch.equal(got.tensors()[name].cpu(), value), name


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
@pytest.mark.parametrize("name", ["rms_norm", "block_attention", "row_stats", "quantize_rows", "linear"])
def test_cuda_opcheck(name):
    torch.manual_seed(0)
    if name == "rms_norm":
        x = torch.randn(3, 64, device="cuda")
        arguments = (x, None, torch.ones(64, device="cuda"), 1e-6, torch.empty_like(x))
    elif name == "quantize_rows":
        x = torch.randn(3, 64, device="cuda")
        arguments = (x, x.to(torch.uint8), torch.empty(3, device="cuda"))
    elif name == "linear":
        x, out = torch.randn(3, 64, device="cuda").half(), torch.empty(3, 5, device="cuda").half()
        arguments = (x, None, ops.pack_weight(torch.randn(5, 64, device="cuda").half()), out)
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
