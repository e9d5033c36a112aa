"""The build: what the library says of itself, what its sources include, what `make` says of missing tools."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edlm_engine
from edlm_engine import ops

ROOT = Path(__file__).parent.parent


def test_build_info():
    info = ops.build_info()
    assert info["version"] == edlm_engine.__version__
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


SAYS = {"python": "Python >= 3.11", "compiler": r"a C\+\+17 compiler", "cmake": "CMake >= 3.22"}
MISSING = ("compiler", "old compiler", "cmake", "old cmake")


def without(missing: str, folder: Path) -> dict[str, str]:
    """Variables of an environment in which that tool is missing, or an old one is there."""
    variables = {"PATH": f"{folder}:{os.environ['PATH']}"}
    if "compiler" in missing:
        variables["CXX"] = "false" if "old" in missing else "no-such-compiler"
    if "cmake" in missing:
        script = "#!/bin/sh\necho 'cmake version 3.16.3'" if "old" in missing else "#!/bin/false"
        (folder / "cmake").write_text(script)
        (folder / "cmake").chmod(0o755)
    return variables


@pytest.mark.parametrize("missing", ["python", *MISSING])
def test_make_says_what_is_missing(missing, tmp_path):
    """In a folder with the build's files alone; where Python is not what is missing, it counts as set up."""
    (tmp_path / "csrc").mkdir()
    for name in ("Makefile", "CMakeLists.txt", "setup.py", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    tools = tmp_path / "tools"
    tools.mkdir()
    if missing != "python":
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv/.torch").touch()
    python = "no-such-python" if missing == "python" else "python3"
    result = subprocess.run(
        ["make", "-C", tmp_path, "test", f"PYTHON={python}"],
        env=os.environ | {"CXX": "c++"} | without(missing, tools), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode != 0
    assert re.search(f"^edlm_engine needs {SAYS[missing.split()[-1]]} .*$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["bdist_wheel", "editable_wheel"])
@pytest.mark.parametrize("missing", MISSING)
def test_an_installer_says_what_is_missing(missing, command, tmp_path):
    """One sentence, and nothing before or behind it, so that pip's output cannot bury it."""
    setup = tmp_path / "setup.py"
    setup.write_text(
        (ROOT / "setup.py").read_text().replace("Path(sys.executable).parent", repr(str(tmp_path)))
    )
    result = subprocess.run(
        [sys.executable, setup, command], cwd=tmp_path, env=os.environ | without(missing, tmp_path),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode != 0 and not result.stdout
    assert re.fullmatch(f"edlm_engine needs {SAYS[missing.split()[-1]]} .*\\.\n", result.stderr)
