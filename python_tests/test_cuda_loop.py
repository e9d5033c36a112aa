"""The device-side loop without a GPU: a mock of the CUDA runtime interprets what csrc/cuda/loop.cu builds,
with the loop's own kernels. It must do what the loop in Python does, and faults in it must be caught."""

import os
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
import test_cuda_compile
from host_sim import ROOT, SANITIZERS, WARNINGS
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from loop_mock import NEW, OLD, compiled, needs_headers

library = test_cuda_compile.library


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return compiled(tmp_path_factory.mktemp("loop") / "program", "-O1", "-g", *SANITIZERS, *WARNINGS)


class Launches:
    """What one loop made of a script: its error, the steps of each launch, the last count, CUDA's calls."""

    def __init__(self, program, script, max_steps=100, launches=1, seed=1, driver=NEW, fail_at=-1):
        pairs = [f"{go_on}{commit}" for go_on, commit in script]
        numbers = map(str, (seed, driver, fail_at, max_steps, launches))
        options = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(
            [program, *numbers, *pairs], capture_output=True, text=True, env=options, timeout=60
        )
        assert done.returncode == 0, done.stderr
        self.error, ran, counts, calls = done.stdout.splitlines()
        self.ran = ran.split("|")[1:]
        self.steps, self.alive, self.left = map(int, counts.split())
        self.calls = calls.split()


def expected(script, max_steps, launches) -> tuple[list[str], int]:
    """The loop in Python: the steps of each launch (c: with commit, p: plain), and how many the last has."""
    states = iter(script)
    go_on, commit = next(states, (0, 0))
    ran = []
    for _ in range(launches):
        ran.append("")
        while go_on and len(ran[-1]) < max_steps:
            ran[-1] += "c" if commit else "p"
            go_on, commit = next(states, (0, 0))
    return ran, len(ran[-1])


def check(program, script, max_steps, launches, seed):
    done = Launches(program, script, max_steps, launches, seed)
    assert not done.error
    assert (done.ran, done.steps) == expected(script, max_steps, launches)
    assert (done.alive, done.left) == (1, 0)  # the loop itself, until it is destroyed


SCRIPTS = st.lists(st.tuples(st.sampled_from((1, 1, 1, 1, 0)), st.integers(0, 1)), max_size=12)


@needs_headers
def test_any_script(program):
    @hypothesis_settings(max_examples=150, deadline=None, derandomize=True)
    @given(SCRIPTS, st.integers(1, 8), st.integers(1, 4), st.integers(0, 1000))
    def check_one(script, max_steps, launches, seed):
        check(program, script, max_steps, launches, seed)

    check_one()


CASES = {
    "nothing to do": ([(0, 0)], 5, 2),
    "nothing to do but a commit": ([(0, 1)], 5, 1),
    "both kinds": ([(1, 0), (1, 1), (1, 1), (1, 0), (0, 1)], 50, 1),
    "as many as allowed": ([(1, 1)] * 7, 3, 3),
    "a pause, then on": ([(1, 0), (1, 1), (0, 1), (1, 0)], 10, 2),
}


@needs_headers
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_scripts(program, case, seed):
    check(program, *CASES[case], seed)


@needs_headers
def test_every_failing_call_is_reported_and_leaves_nothing(program):
    calls = Launches(program, [(1, 1)]).calls
    assert len(calls) > 10 and calls[-1] == "cudaGraphLaunch"
    for i, name in enumerate(calls):
        failed = Launches(program, [(1, 1)], fail_at=i)
        assert failed.error == f"{name}: made to fail"
        assert (failed.calls, failed.left) == (calls[: i + 1], 0)
        assert failed.alive == (name == "cudaGraphLaunch") and not "".join(failed.ran)


@needs_headers
@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (OLD, "the NVIDIA driver is one for CUDA 12.3, loops in graphs need 12.4"),
        (0, "there is no NVIDIA driver"),
    ],
)
def test_drivers_without_loops(program, driver, message):
    refused = Launches(program, [(1, 1)], driver=driver)
    assert (refused.error, refused.left) == (message, 0)


@needs_headers
def test_toolkit_without_loops(tmp_path):
    old = compiled(tmp_path / "old", "-O0", *WARNINGS, f"-DEDLM_TOOLKIT={OLD}")
    refused = Launches(old, [(1, 1)])
    assert refused.error == "this build was made with CUDA 12.3, loops in graphs need 12.4"
    assert not refused.calls


WAIT = "  wait_for_previous_kernel();\n  if (threadIdx.x != 0) return;\n"
MUTATIONS = {
    "loop before begin": ("loop_graph.h", "(root, begin,", "(root, nullptr,"),
    "next beside the steps": ("loop_graph.h", "(loop.body, plains.node,", "(loop.body, nullptr,"),
    "the same step twice": ("loop_graph.h", "(plains.body, plain)", "(plains.body, with_commit)"),
    "plain in place of commit": ("loop_graph.h", "(commits.body, with_commit)", "(commits.body, plain)"),
    "the other condition": ("loop.cuh", "(p.commit, turn.commit)", "(p.commit, turn.plain)"),
    "a condition for two": ("loop_graph.h", "commits.node, params.plain", "commits.node, params.commit"),
    "a condition for none": ("loop_graph.h", "params.again = ", "new_handle(root), params.again = "),
    "a graph left": ("loop_graph.h", "{ cudaGraphDestroy(graph); }", "{ (void)graph; }"),
    "no wait": ("loop.cuh", WAIT + "  ++", WAIT.splitlines()[1] + "\n  ++"),
    "no count": ("loop.cuh", "++p.control->steps;", ""),
    "count goes on": ("loop.cuh", "p.control->steps = 0;", ""),
    "a condition not set": ("loop.cuh", "cudaGraphSetConditional(p.plain, turn.plain);", ""),
    "one step too many": ("loop.h", "control.steps < max_steps", "control.steps <= max_steps"),
    "always both": ("loop.h", "again && !commit", "again"),
}


@needs_headers
@pytest.mark.parametrize("what", MUTATIONS)
def test_faults_are_caught(tmp_path, what):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    name, right, wrong = MUTATIONS[what]
    file = tmp_path / "csrc/cuda" / name
    text = file.read_text()
    assert text.count(right) == 1
    file.write_text(text.replace(right, wrong))
    broken = compiled(tmp_path / "broken", "-O0", csrc=tmp_path / "csrc")
    with pytest.raises(AssertionError):
        for case, seed in product(CASES, range(4)):
            check(broken, *CASES[case], seed)


def test_turns(tmp_path):
    """loop_turn() alone, over everything that a control can say."""
    table = []
    for go_on, commit, steps in product((0, 1, -1), (0, 1, 7), (0, 4, 5, 6)):
        again = bool(go_on) and steps < 5
        want = f"{again:d}, {again and bool(commit):d}, {again and not commit:d}"
        table.append(f"static_assert(same(edlm::loop_turn({{{go_on}, {commit}, {steps}}}, 5), {{{want}}}));")
    same = """constexpr bool same(edlm::LoopTurn a, edlm::LoopTurn b) {
  return a.again == b.again && a.commit == b.commit && a.plain == b.plain;
}"""
    source = tmp_path / "turns.cpp"
    source.write_text("\n".join(['#include "cuda/loop.h"', same, *table]))
    subprocess.run(["c++", "-std=c++17", f"-I{ROOT / 'csrc'}", "-fsyntax-only", source], check=True)


@pytest.mark.skipif(test_cuda_compile.NVCC is None, reason="needs nvcc")
def test_a_real_build_exports_it(library):
    names = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in names.stdout.splitlines() if "edlm_loop" in line}
    assert exported == {f"edlm_loop_{name}" for name in ("create", "launch", "destroy", "unsupported")}
