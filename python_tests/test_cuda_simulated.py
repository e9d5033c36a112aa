"""The whole way from the engine through the ops' torch side to the CUDA kernels, without a GPU: a build of
the extension that takes the CPU's tensors for a GPU's and runs the kernels' source under host_sim."""

import json
from pathlib import Path

import pytest
import torch
from build_variants import build, package_with, run_with
from checkpoints import config_dict, write_checkpoint
from reference import ops as reference
from test_device_engine import HEADS, PARAMS, PROMPTS

from edlm_engine import Engine, assembly, ops
from edlm_engine.checkpoints.folder import bundled_models
from edlm_engine.tools.quantize import quantize_checkpoint

HERE = Path(__file__).parent
# torch's product of 16-bit matrices with a float32 result has no CPU kernel; this is what it means
PLUGIN = """
import torch
library = torch.library.Library("aten", "IMPL")
library.impl("mm.dtype", lambda a, b, dtype: a.to(dtype) @ b.to(dtype), "CPU")
from edlm_engine import packing
from edlm_engine import assembly
packing.on_gpu = lambda device: True
assembly.choose_quantization = lambda asked, checkpoint, device: asked or checkpoint.quantization
"""
GENERATE = """
import json, simulated_mm, sys
from edlm_engine import Engine
from edlm_engine.checkpoints.checkpoint import Checkpoint
from test_device_engine import PARAMS, PROMPTS
mapped = Checkpoint.tensor
Checkpoint.tensor = lambda *arguments: mapped(*arguments).clone()  # aligned, as after the way to a GPU
options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
with Engine(sys.argv[1], device="cpu", dtype=sys.argv[2], **options) as engine:
    print(json.dumps([(r.token_ids, r.commit_steps) for r in engine.generate(PROMPTS, PARAMS)]))
"""
MANY_ROWS = """
import torch
from edlm_engine import ops
from reference import ops as reference
from op_cases import StatsCase, assert_close
inputs = StatsCase(552, 16, 64, temperature=8.0).inputs(torch.float32)
ids, stats = torch.zeros(552, 2, dtype=torch.int32), torch.zeros(552, 5)
ops.row_stats(**inputs, ids=ids, stats=stats)
want_ids, want_stats = reference.row_stats(**inputs)
assert torch.equal(ids, want_ids)
assert_close(stats, want_stats, 1e-4, 1e-5)
"""
MANY_QUANTISED_ROWS = """
import simulated_mm, torch
from edlm_engine import ops
from reference import ops as reference
from edlm_engine.models.quantization import quantize_weight
from op_cases import StatsCase, assert_close
inputs = StatsCase(552, 16, 64, temperature=8.0).inputs(torch.float32)
weight = quantize_weight(inputs.pop("weight"))
q, scale = reference.quantize_rows(inputs.pop("hidden"))
exact = reference.int8_linear(q, scale, *weight)
ids, stats = torch.zeros(552, 2, dtype=torch.int32), torch.zeros(552, 5)
ops.row_stats_quantized(q, scale, ops.pack_int8_weight(*weight), 64, **inputs, ids=ids, stats=stats)
want_ids, want_stats = reference.row_stats(torch.eye(552), exact.T.contiguous(), **inputs)
assert torch.equal(ids, want_ids)
assert_close(stats, want_stats, 1e-4, 1e-5)
"""
REFUSED = """
import simulated_mm, torch
from edlm_engine import ops, packing
x, one, out = torch.zeros(2, 64), torch.ones(2), torch.zeros(2, 5)
half, bytes_, fp8 = x.half(), x.to(torch.uint8), x.to(torch.float8_e4m3fn)
packed = ops.pack_weight(torch.zeros(5, 64).half())
int8 = ops.pack_int8_weight(torch.zeros(5, 64, dtype=torch.int8), torch.ones(5))
for call in (
    lambda: ops.linear(x, None, packed, out),
    lambda: ops.linear(half, None, packing._panels(torch.zeros(5, 64).half(), 0), out),
    lambda: ops.linear(half, None, packed, out.bfloat16()),
    lambda: ops.linear(bytes_, one, packed, out),
    lambda: ops.linear(fp8, None, int8, out),
    lambda: ops.linear(bytes_.view(-1)[1:65].view(1, 64), one[:1], int8, out[:1]),
    lambda: ops.linear(bytes_[:, :6].contiguous(), one, int8, out),
    lambda: ops.quantize_rows(x, bytes_.view(torch.int8), one),
    lambda: ops.quantize_rows(x, torch.zeros(132, dtype=torch.uint8)[4:].view(2, 64), one),
):
    try:
        call()
        print("nothing")
    except ValueError as error:
        print(error)
"""
REFUSALS = [
    "edlm::linear: x: want BFloat16, Half, or quantised rows with x_scale, got Float",
    "edlm::linear: weight: want contiguous Int [1, 2048] on cpu, got Int [1, 32, 32]",
    "edlm::linear: x: want contiguous BFloat16 [any, any] on cpu, got Half [2, 64]",
    "edlm::linear: weight: want contiguous Int [1, 1088] on cpu, got Int [1, 2048]",
    "edlm::linear: x: want Float, Half or BFloat16, got Float8_e4m3fn",
    "edlm::linear: x: want memory aligned to 16 bytes, got a view that is not",
    "edlm::linear: x: want a multiple of 4, up to 66000, as columns, got 6",
    "edlm::quantize_rows: q: want contiguous Byte [2, 64] on cpu, got Char [2, 64]",
    "edlm::quantize_rows: q: want memory aligned to 16 bytes, got a view that is not",
]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    library = build("simulated", "_C_simulated", "-DEDLM_CUDA=OFF")
    folder = package_with(library, tmp_path_factory.mktemp("simulated"))
    (folder / "simulated_mm.py").write_text(PLUGIN)
    return folder


def test_ops(simulated):
    """test_device_ops, where a head size has a CUDA kernel, in the types that the CPU has too."""
    options = ("-o", "addopts=", "-q", "-p", "simulated_mm", "-p", "no:cacheprovider", "--rootdir", simulated)
    done = run_with(simulated, "-m", "pytest", *options, HERE / "test_device_ops.py", "-k", "small and cpu")
    assert done.returncode == 0 and "36 passed" in done.stdout, done.stdout + done.stderr


def test_it_is_the_cuda_side_that_runs(simulated):
    """It has no kernel for a head size that the CPU has."""
    script = (
        "import torch; from edlm_engine import ops; x = torch.zeros(1, 2, 16); i = torch.zeros(1, 6).int();"
    )
    script += "c = torch.zeros(1, 2, 16, 16); ops.block_attention(x, c, c, i, i, 1.0, x)"
    assert "block_attention: want a head size of 64 or 128" in run_with(simulated, "-c", script).stderr


def test_memory_that_vectors_do_not_fit(simulated):
    script = "import torch; from edlm_engine import ops; x = torch.zeros(65)[1:].view(1, 64);"
    script += "ops.rms_norm(x, None, torch.ones(64), 1e-6, torch.zeros(1, 64))"
    assert "rms_norm: x: want memory aligned to 16 bytes" in run_with(simulated, "-c", script).stderr


def test_more_rows_than_have_their_logits_in_memory_at_a_time(simulated):
    done = run_with(simulated, "-c", MANY_ROWS)
    assert done.returncode == 0, done.stderr


def test_many_quantised_rows(simulated):
    done = run_with(simulated, "-c", MANY_QUANTISED_ROWS)
    assert done.returncode == 0, done.stderr


def test_refused_arguments(simulated):
    done = run_with(simulated, "-c", REFUSED)
    assert done.stdout.splitlines() == REFUSALS, done.stderr


@pytest.mark.parametrize("stepping", ["eager", "direct"])
@pytest.mark.parametrize("arch", ["qwen3", "qwen2"])
def test_engine(simulated, tmp_path, arch, stepping):
    """Four prompts at once, greedy and sampled, filtered and not: the tokens that the CPU's kernels give."""
    folder = write_checkpoint(tmp_path / "model", config_dict(arch, **HEADS))
    with Engine(folder, device="cpu", dtype="float32") as engine:
        want = [[r.token_ids, r.commit_steps] for r in engine.generate(PROMPTS, PARAMS)]
    done = run_with(simulated, "-c", GENERATE, folder, "float32", json.dumps({"stepping": stepping}))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == want


@pytest.mark.parametrize("before", [True, False], ids=["quantised before", "while loading"])
@pytest.mark.parametrize("arch", ["qwen3", "qwen2"])
def test_int8_engine(simulated, tmp_path, arch, before):
    """The tokens of the CPU's int8 engine, from the same checkpoint."""
    folder = write_checkpoint(tmp_path / "model", config_dict(arch, **HEADS))
    if before:
        folder = quantize_checkpoint(folder, tmp_path / "int8")
    with Engine(folder, device="cpu", dtype="float32", quantization="int8") as engine:
        want = [[r.token_ids, r.commit_steps] for r in engine.generate(PROMPTS, PARAMS)]
    options = '{"quantization": "int8", "stepping": "direct"}'
    done = run_with(simulated, "-c", GENERATE, folder, "float32", options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == want


class Fp8Linear:
    """What a float8 layer means, for an engine on the CPU."""

    def __init__(self, weight, rows):
        self.weight = weight

    def quantized_input(self, rows):
        return None, None

    def __call__(self, x, out, quantized=None):
        return out.copy_(reference.fp8_linear(*reference.quantize_rows_fp8(x), *self.weight))


class Fp8Head(Fp8Linear):
    def row_stats(self, hidden, *arguments):
        logits = self(hidden, torch.empty(len(hidden), len(self.weight.values)))
        ops.row_stats(torch.eye(len(hidden)), logits.T.contiguous(), *arguments)


@pytest.mark.parametrize("before", [True, False], ids=["quantised before", "while loading"])
def test_fp8_engine(simulated, tmp_path, monkeypatch, before):
    """The tokens of an engine that multiplies as the reference does."""
    folder = write_checkpoint(tmp_path / "model", config_dict(**HEADS))
    with monkeypatch.context() as patched:
        patched.setattr(assembly, "choose_quantization", lambda *_: "fp8")
        patched.setattr("edlm_engine.models.linears.QuantizedLinear", Fp8Linear)
        patched.setattr("edlm_engine.models.weights.QuantizedHead", Fp8Head)
        with Engine(folder, device="cpu", dtype="float32") as engine:
            want = [[r.token_ids, r.commit_steps] for r in engine.generate(PROMPTS, PARAMS)]
    if before:
        folder = quantize_checkpoint(folder, tmp_path / "fp8", kind="fp8")
    done = run_with(simulated, "-c", GENERATE, folder, "float32", '{"quantization": "fp8"}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == want


def test_engine_in_bfloat16(simulated, tmp_path):
    folder = write_checkpoint(tmp_path / "model", config_dict(**HEADS))
    done = run_with(simulated, "-c", GENERATE, folder, "bfloat16")
    assert done.returncode == 0, done.stderr
    lengths = [len(token_ids) for token_ids, _ in json.loads(done.stdout)]
    assert lengths == [params.max_new_tokens for params in PARAMS]


@pytest.mark.skipif("edlm-tiny" not in bundled_models(), reason="edlm-tiny is not in the package")
def test_bundled_model(simulated):
    with Engine("edlm-tiny", device="cpu", dtype="float32") as engine:
        want = [[r.token_ids, r.commit_steps] for r in engine.generate(PROMPTS, PARAMS)]
    done = run_with(simulated, "-c", GENERATE, "edlm-tiny", "float32", '{"stepping": "direct"}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == want
