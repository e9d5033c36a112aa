"""nvcc, where there is one, builds the extension with CUDA for the shipped GPUs: no hot kernel spills, the
library loads beside torch and brings a CUDA kernel for every op."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build_variants import build

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100")
COLD = ("row_stats_finish_kernel",)  # a block per row, and only sampled rows work long
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
# Where torch is a CPU build, libtorch_cuda.so with its only function that the extension calls is missing.
STREAMS = "int aoti_torch_get_current_cuda_stream(int device, void** stream) { *stream = 0; return !device; }"
LOAD = """
import ctypes, json, sys, torch
for library in sys.argv[2:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
torch.ops.load_library(sys.argv[1])
for name in sorted(torch._C._dispatch_get_all_op_names()):
    if name.startswith("edlm::"):
        print(name, *(k for k in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key(name, k)))
describe = ctypes.CDLL(sys.argv[1]).edlm_build_info
describe.restype = ctypes.c_char_p
print(json.loads(describe())["cuda_architectures"])
"""


@pytest.fixture(scope="module")
def library() -> Path:
    flags = "-Xptxas -v -Werror all-warnings"
    return build(
        "nvcc", "_C", "-DEDLM_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={NVCC}", f"-DCMAKE_CUDA_FLAGS={flags}"
    )


def kernels(log: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(mangled name, architecture) -> registers and spilled bytes, as ptxas said last."""
    found, name, architecture, spilled = {}, "", "", 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            name, architecture = match.groups()
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            found[name, architecture] = int(match[1]), spilled
    return found


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_hot_kernel_spills(library, architecture):
    binary = library.read_bytes()  # the log also has kernels that are gone by now
    table = {
        name: numbers
        for (name, where), numbers in kernels((library.parent / "log").read_text()).items()
        if where == architecture and name.encode() in binary
    }
    assert len(table) > 40
    names = subprocess.run(["c++filt", *table], capture_output=True, text=True).stdout.splitlines()
    spilling = []
    for readable, (registers, spilled) in zip(names, table.values(), strict=True):
        short = re.sub(r"^void |edlm::(cuda::)?|\(.*", "", readable)
        print(f"{architecture} {short}: {registers} registers, {spilled} bytes spilled")
        if spilled and not any(cold in readable for cold in COLD):
            spilling.append(short)
    assert not spilling


@needs_nvcc
def test_every_op_has_a_cuda_kernel(library, tmp_path):
    missing = []
    if not (Path(torch.__file__).parent / "lib/libtorch_cuda.so").exists():
        missing = [tmp_path / "streams.so"]
        (tmp_path / "streams.c").write_text(STREAMS)
        subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "streams.c", "-o", missing[0]], check=True)
    done = subprocess.run([sys.executable, "-c", LOAD, library, *missing], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *ops, architectures = done.stdout.splitlines()
    assert architectures == "['80-real', '89-real', '90a-real', '100']"
    assert len(ops) >= 9
    assert not [line for line in ops if not line.endswith(" CPU CUDA")]


def test_spills_are_seen():
    said = """ptxas info    : Compiling entry function '_Z4kernPf' for 'sm_80'
ptxas info    : Function properties for _Z4kernPf
    96 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers"""
    assert kernels(said) == {("_Z4kernPf", "sm_80"): (255, 20)}
