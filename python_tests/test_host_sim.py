"""The simulator itself: a kernel that is right passes, and each way to break it is caught."""

import shutil

import pytest
import test_cuda_linear as linear_tests
import torch
from host_sim import ROOT, HostSim, SimulatorError, poisoned
from test_cuda_block_attention import Case, check

FAULTS = ["none", "no_wait", "no_barrier", "early_overwrite", "over_read_global", "over_read_shared",
          "unwritten_output", "divergent_barrier", "divergent_warp", "unordered_launch"]  # fmt: skip
SEEDS = range(6)


def outcome(simulator: HostSim, fault: str, seed: int) -> str:
    """right, wrong (the output is not the input reversed by 256 plus 1), or what the simulator said."""
    x = torch.randn(1024, generator=torch.Generator().manual_seed(seed))
    out = poisoned(1024)
    try:
        simulator.run("broken", seed, ["out"], fault=FAULTS.index(fault), count=1024, input=x, out=out)
    except SimulatorError as error:
        return str(error)
    return "right" if torch.equal(out, x.view(-1, 256).flip(1).flatten() + 1) else "wrong"


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def simulator(request) -> HostSim:
    return HostSim(request.param)


@pytest.mark.parametrize("seed", SEEDS)
def test_right_kernel_passes(simulator, seed):
    assert outcome(simulator, "none", seed) == "right"


@pytest.mark.parametrize("fault", ["no_wait", "unwritten_output"])
@pytest.mark.parametrize("seed", SEEDS)
def test_poison_shows_with_any_order(simulator, fault, seed):
    assert outcome(simulator, fault, seed) == "wrong"


@pytest.mark.parametrize("fault", ["no_barrier", "early_overwrite"])
def test_some_order_of_threads_shows_a_race(simulator, fault):
    assert "wrong" in {outcome(simulator, fault, seed) for seed in SEEDS}


@pytest.mark.parametrize("fault", ["over_read_global", "over_read_shared"])
def test_sanitizer_sees_over_reads(fault):
    assert "heap-buffer-overflow" in outcome(HostSim("sanitized"), fault, 0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("divergent_barrier", "is stuck"),
        ("divergent_warp", "is stuck"),
        ("unordered_launch", "without having waited for the previous kernel"),
    ],
)
@pytest.mark.parametrize("seed", [0, 3])
def test_threads_that_do_not_meet_are_named(simulator, fault, message, seed):
    assert message in outcome(simulator, fault, seed)


MUTATIONS = {  # of block_attention.cuh
    "barrier": ("    sync_block(); // this tile", "    // this tile"),
    "wait": ("    wait();\n    sync_block(); // this tile", "    sync_block(); // this tile"),
    "last row": ("if (row >= tile.count) continue;", "if (row + 1 >= tile.count) continue;"),
    "mask": ("if (masked && first", "if (!masked && first"),
}


LINEAR_MUTATIONS = {
    "barrier": ("linear.cuh", "    sync_block();\n    const int item", "    const int item"),
    "steps ahead": (
        "linear.cuh",
        "index + kAhead * kLinearWarps < end",
        "index + kAhead * kLinearWarps + 1 < end",
    ),
    "last split": ("linear_combine.cuh", "split < p.splits; ++split", "split < p.splits - 1; ++split"),
    "largest": ("quantize_rows.cuh", "most = max_block(most, scratch);", ""),
}


@pytest.mark.parametrize("what", LINEAR_MUTATIONS)
def test_faults_in_the_linear_kernels_are_caught(tmp_path, what):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    file, right, wrong = LINEAR_MUTATIONS[what]
    kernel = tmp_path / "csrc/cuda" / file
    text = kernel.read_text()
    assert text.count(right) == 1
    kernel.write_text(text.replace(right, wrong))
    broken = HostSim("unoptimised", tmp_path / "csrc", "mutated_linear")
    case = linear_tests.Case(torch.bfloat16, 19, 2088, 67)
    with pytest.raises(AssertionError):
        for seed in range(4):
            linear_tests.check(case, broken, torch.float32, seed=seed, splits=2)
            linear_tests.test_quantize_rows(broken, torch.float32, (2, 2052))


@pytest.mark.parametrize("what", MUTATIONS)
def test_faults_in_the_attention_kernel_are_caught(tmp_path, what):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    kernel = tmp_path / "csrc/cuda/block_attention.cuh"
    right, wrong = MUTATIONS[what]
    text = kernel.read_text()
    assert text.count(right) == 1
    kernel.write_text(text.replace(right, wrong))
    broken = HostSim("unoptimised", tmp_path / "csrc", "mutated")
    case = Case(((0, 33, 200, True),), heads=4)
    check(HostSim("plain"), case, seed=1)
    with pytest.raises(AssertionError):
        for seed in range(4):
            check(broken, case, seed)
