"""The build: what the library says of itself, what its sources include, what `make` says of missing tools."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from edlm_engine import ops

ROOT = Path(__file__).parent.parent


def test_build_info():
    info = ops.build_info()
    assert info["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert info["isa"] in info["compiled_isas"].split(",")
    assert info["compiled_isas"].endswith("scalar")
    assert info["cuda"] == bool(info["cuda_architectures"])
    assert info["torch_target"] == "2.11"


def test_no_torch_header_below_ops():
    folders = ("*.h", "cpu/*", "cuda/*", "host_sim/*")
    for path in (path for folder in folders for path in ROOT.glob(f"csrc/{folder}")):
        includes = re.findall(r'#include\s+[<"]([^>"]+)', path.read_text())
        assert not [name for name in includes if re.match("torch/|ATen/|c10/", name)], path


def test_only_the_stable_abi():
    for path in [*ROOT.glob("csrc/ops/*"), ROOT / "csrc/bindings.cpp"]:
        for name in re.findall(r"#include <(torch/[^>]+)>", path.read_text()):
            assert name.startswith(("torch/csrc/stable/", "torch/headeronly/")), f"{path}: {name}"


def test_every_source_is_listed_once():
    listed = re.findall(r"csrc/\S+?\.(?:cpp|cu)\b", (ROOT / "CMakeLists.txt").read_text())
    patterns = ("*.cpp", "ops/*.cpp", "cpu/*.cpp", "cuda/*.cu")
    on_disk = [str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}")]
    assert sorted(name for name in listed if "host_sim" not in name) == sorted(on_disk)


@pytest.mark.parametrize("missing", ["python", "compiler", "old compiler", "cmake", "old cmake"])
def test_make_says_what_is_missing(missing, tmp_path):
    """In a folder with the build's files alone; where Python is not what is missing, it counts as set up."""
    (tmp_path / "csrc").mkdir()
    for name in ("Makefile", "CMakeLists.txt", "setup.py", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    tools = tmp_path / "tools"
    tools.mkdir()
    variables = {"PYTHON": "python3", "CXX": "c++", "PATH": f"{tools}:{os.environ['PATH']}"}
    if missing == "python":
        variables["PYTHON"] = "no-such-python"
    else:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv/.torch").touch()
    if "compiler" in missing:
        variables["CXX"] = "false" if "old" in missing else "no-such-compiler"
    if "cmake" in missing:
        (tools / "cmake").write_text(
            "#!/bin/sh\necho 'cmake version 3.16.3'" if "old" in missing else "#!/bin/false"
        )
        (tools / "cmake").chmod(0o755)
    result = subprocess.run(
        ["make", "-C", tmp_path, "test", f"PYTHON={variables['PYTHON']}"],
        env=os.environ | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode != 0
    wanted = {"python": "Python >= 3.11", "compiler": r"a C\+\+17 compiler", "cmake": "CMake >= 3.22"}
    assert re.search(f"^edlm_engine needs {wanted[missing.split()[-1]]} .*$", result.stdout, re.MULTILINE)
