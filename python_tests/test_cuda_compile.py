"""nvcc, where there is one, compiles every kernel for the shipped architectures; no hot kernel may spill."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from host_sim import ROOT

ARCHITECTURES = {"sm_80": "80", "sm_90a": "90a", "sm_100": "100"}
SOURCES = sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))
BUILD = ROOT / "build" / "nvcc"
COLD = ("row_stats_finish_kernel",)  # a block per row, and only sampled rows work long
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


def report(source: str, name: str) -> str:
    """What ptxas says of one source for one architecture; kept while no source changes."""
    kept, cu = BUILD / name / f"{source}.txt", ROOT / "csrc/cuda" / f"{source}.cu"
    headers = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc/cuda").glob("*.*h"), cu]
    if kept.exists() and kept.stat().st_mtime > max(path.stat().st_mtime for path in headers):
        return kept.read_text()
    kept.parent.mkdir(parents=True, exist_ok=True)
    number = ARCHITECTURES[name]
    done = subprocess.run(
        [
            NVCC, "-std=c++17", "-O3", "--expt-relaxed-constexpr", f'-DEDLM_CUDA_ARCHS="{name}"', "-Xptxas",
            "-v", "-Werror", "all-warnings", "-diag-suppress", "1675",
            "-gencode", f"arch=compute_{number},code={name}", "-c", cu, "-o", kept.with_suffix(".o"),
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept.write_text(done.stderr)
    return done.stderr


def kernels(text: str) -> dict[str, tuple[int, int]]:
    """Registers and spilled bytes of every kernel in what ptxas said."""
    found, name, spilled = {}, "", 0
    for line in text.splitlines():
        if match := re.search(r"Function properties for (\S+)", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            found[name] = int(match[1]), spilled
    return found


@pytest.fixture(scope="module")
def reports() -> dict[tuple[str, str], str]:
    jobs = [(source, name) for name in ARCHITECTURES for source in SOURCES]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        return dict(zip(jobs, pool.map(lambda job: report(*job), jobs), strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_source_compiles_and_no_hot_kernel_spills(reports, name):
    table = {}
    for source in SOURCES:
        table |= kernels(reports[source, name])
    assert len(table) > 40
    names = subprocess.run(["c++filt", *table], capture_output=True, text=True).stdout.splitlines()
    spilling = []
    for readable, (registers, spilled) in zip(names, table.values(), strict=True):
        short = re.sub(r"^void |edlm::(cuda::)?|\(.*", "", readable)
        print(f"{name} {short}: {registers} registers, {spilled} bytes spilled")
        if spilled and not any(cold in readable for cold in COLD):
            spilling.append(short)
    assert not spilling


def test_spills_are_seen():
    said = """ptxas info    : Function properties for _Z4kernPf
    96 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers"""
    assert kernels(said) == {"_Z4kernPf": (255, 20)}
