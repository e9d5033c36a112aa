"""Builds csrc/cuda/loop.cu on the mock of the CUDA runtime, as a program or as a library."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from host_sim import ROOT
from test_cuda_compile import NVCC

HERE = Path(__file__).parent
NEW, OLD = 13000, 12030  # drivers and toolkits


def _headers() -> Path | None:
    """The folder of a CUDA toolkit's headers that know loops in graphs."""
    toolkits = [os.environ.get("CUDA_HOME"), NVCC and Path(NVCC).resolve().parents[1], "/usr/local/cuda"]
    for toolkit in filter(None, toolkits):
        header = Path(toolkit, "include", "cuda_runtime_api.h")
        found = header.exists() and re.search(
            r"define CUDART_VERSION\s+(\d+)", header.read_text(errors="replace")
        )
        if found and int(found[1]) >= 12040:
            return header.parent
    return None


HEADERS = _headers()
needs_headers = pytest.mark.skipif(HEADERS is None, reason="needs the headers of a CUDA toolkit from 12.4 on")


def compiled(target: Path, *flags: str, csrc: Path = ROOT / "csrc") -> Path:
    sources = [HERE / "cuda_loop_test.cpp", csrc / "host_sim/machine.cpp", csrc / "host_sim/fiber.cpp"]
    command = ["c++", "-std=c++17", *flags, f"-I{csrc}", f"-I{HERE}", "-isystem", HEADERS]
    subprocess.run([*command, *sources, "-o", target], check=True)
    return target
