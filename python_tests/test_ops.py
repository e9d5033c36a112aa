"""What holds for all ops: every instruction set, any number of threads, torch's own checks of operators."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_cases import ATTENTION_CASES, STATS_CASES, Cache, QkvCase, StatsCase, tensor, unmask_state
from reference import ops as reference

from edlm_engine import ops
from edlm_engine.models.quantization import quantize_weight

HERE = Path(__file__).parent
OP_TESTS = [
    HERE / f"test_{name}.py"
    for name in ("rms_norm", "silu_mul", "qkv_prepare", "block_attention", "row_stats", "linear", "unmask")
]


def room_for_quantised(rows: int, columns: int) -> dict:
    return {"q": torch.zeros(rows, columns, dtype=torch.uint8), "scale": torch.zeros(rows)}


def arguments(op: str) -> dict:
    """Valid arguments of an op, by name; the outputs are zeros."""
    if op == "rms_norm":
        x = tensor((33, 1024), torch.float32, 0)
        inputs = {"x": x, "delta": x + 1, "weight": x[0].clone(), "eps": 1e-6, "out": torch.zeros(33, 1024)}
        return inputs | room_for_quantised(33, 1024)
    if op == "silu_mul":
        gate_up = tensor((65, 2048), torch.float32, 0)
        return {"gate_up": gate_up, "out": torch.zeros(65, 1024)} | room_for_quantised(65, 1024)
    if op == "qkv_prepare":
        inputs = QkvCase(16, Cache(8, 64, 16, (70,)), (30,), norm=True, bias=True).inputs(torch.float32)
        caches = {name: inputs[name].nan_to_num() for name in ("k_cache", "v_cache")}
        return inputs | caches | {"q": torch.zeros(42, 16, 64), "eps": 1e-6}
    if op == "block_attention":
        case = ATTENTION_CASES["fused"]
        inputs = case.inputs(torch.float32)
        caches = {name: inputs[name].nan_to_num() for name in ("k_cache", "v_cache")}
        return inputs | caches | {"scale": case.scale, "out": torch.zeros(case.rows, case.heads, 64)}
    if op == "quantize_rows":
        x = tensor((133, 1024), torch.float32, 0)
        return {"x": x} | room_for_quantised(133, 1024)
    if op == "linear":
        weight = ops.pack_int8_weight(*quantize_weight(tensor((999, 512), torch.float32, 1)))
        q = torch.arange(20 * 512).view(20, 512).remainder(255).to(torch.uint8) + 1
        return {"x": q, "x_scale": torch.linspace(0.1, 1, 20), "weight": weight, "out": torch.zeros(20, 999)}
    if op == "row_stats_quantized":
        inputs = arguments("row_stats")
        weight = ops.pack_int8_weight(*quantize_weight(inputs["weight"]))
        q, scale = reference.quantize_rows(inputs["hidden"])
        return inputs | {"hidden": q, "hidden_scale": scale, "weight": weight, "vocab": 9001}
    if op == "row_stats":
        inputs = StatsCase(19, 64, 9001, temperature=0.8).inputs(torch.float32)
        return inputs | {"ids": torch.zeros(19, 2, dtype=torch.int32), "stats": torch.zeros(19, 5)}
    state, *rest = unmask_state(slots=64, max_block=32, seed=1)
    return {"state": state.records} | dict(zip(("ids", "stats", "first_row"), rest, strict=True))


ALL_OPS = pytest.mark.parametrize(
    "op",
    [
        "rms_norm",
        "silu_mul",
        "quantize_rows",
        "linear",
        "qkv_prepare",
        "block_attention",
        "row_stats",
        "row_stats_quantized",
        "unmask",
    ],
)


def python(isa: str, *command) -> subprocess.CompletedProcess:
    environment = os.environ | {"EDLM_ISA": isa}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ops.build_info()["compiled_isas"].split(","))
def test_every_instruction_set(isa):
    if isa == ops.build_info()["isa"]:
        pytest.skip("the other tests run it")
    probe = python(isa, "-c", "from edlm_engine import ops; print(ops.build_info()['isa'])")
    if "lacks it" in probe.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert probe.stdout.strip() == isa, probe.stderr
    result = python(isa, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *OP_TESTS)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_unknown_instruction_set():
    result = python("avx9", "-c", "import edlm_engine.ops")
    built = ops.build_info()["compiled_isas"]
    assert (
        f"ValueError: EDLM_ISA=avx9: no such instruction set in this build; built: {built}" in result.stderr
    )
    assert result.returncode == 1  # an error like any other, no abort


@ALL_OPS
def test_bits_do_not_depend_on_the_number_of_threads(op, threads):
    results = []
    for n in (1, 2, 3):
        threads(n)
        inputs = arguments(op)
        getattr(ops, op)(**inputs)
        results.append([value for value in inputs.values() if isinstance(value, torch.Tensor)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))


@ALL_OPS
def test_opcheck(op):
    """torch's checks: schema (what is mutated, no aliases), fake kernel, autograd, torch.compile."""
    inputs = arguments(op)
    native = getattr(torch.ops.edlm, op).default
    torch.library.opcheck(native, tuple(inputs[argument.name] for argument in native._schema.arguments))


def test_filtered_rows_do_not_depend_on_the_number_of_threads(threads):
    results = []
    for n in (1, 2):
        threads(n)
        case = STATS_CASES["top_k_p"]
        ids, stats = torch.zeros(case.rows, 2, dtype=torch.int32), torch.zeros(case.rows, 5)
        ops.row_stats(**case.inputs(torch.bfloat16), ids=ids, stats=stats)
        results.append((ids, stats))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_nothing_to_do():
    """No rows, no blocks, no slots: nothing happens, and nothing fails."""
    inputs = StatsCase(0, 64, 100).inputs(torch.float32)
    ops.row_stats(**inputs, ids=torch.zeros(0, 2, dtype=torch.int32), stats=torch.zeros(0, 5))
    state, *rest = unmask_state(slots=0, max_block=4, seed=0)
    ops.unmask(state.records, *rest)
    attention = arguments("block_attention")
    attention["query_blocks"] = attention["query_blocks"][:0]
    ops.block_attention(**attention)
    assert not attention["out"].any()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("op", ["rms_norm", "silu_mul", "quantize_rows"])
def test_rows_without_columns(op):
    """There could be any number of them, in no memory at all."""
    rows = torch.empty(2**30, 0)
    quantised = {"q": torch.empty(0, 0, dtype=torch.uint8), "scale": torch.empty(0)}
    arguments = {
        "rms_norm": {"x": rows, "delta": None, "weight": torch.empty(0), "eps": 1e-6, "out": rows.clone()},
        "silu_mul": {"gate_up": rows, "out": rows.clone()},
        "quantize_rows": {"x": torch.empty(0, 0)} | quantised,
    }
    with pytest.raises(ValueError, match=f"edlm::{op}: .*: want at least one column, got 0"):
        getattr(ops, op)(**arguments[op])
    with pytest.raises(ValueError, match=r"want sizes below 2\^31, got 2147483648|want contiguous"):
        ops.rms_norm(torch.empty(2**31, 0), None, torch.empty(0), 1e-6, torch.empty(2**31, 0))


def test_under_torch_compile():
    """The fake kernels let a compiled function call the ops without a break in the graph."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        ops.rms_norm(x, None, weight, 1e-6, out)
        return out * 2

    x, weight = tensor((4, 64), torch.float32, 0), torch.ones(64)
    want = torch.nn.functional.rms_norm(x, (64,), weight, 1e-6) * 2
    torch.testing.assert_close(twice(x, weight), want)
