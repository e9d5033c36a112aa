"""What is handed out: the sdist holds what a build needs, a source tree without its library says so, and,
where EDLM_PACKAGE names the torch to take (make package), sdist and wheel are installed and used."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import edlm_engine

ROOT = Path(__file__).parents[1]
TORCH = os.environ.get("EDLM_PACKAGE", "")
PROMPT = "Q: Sort [31, 4, 15] in ascending order.\nA: "
UNWANTED = (
    ".git",
    ".venv",
    ".*_cache",
    ".hypothesis",
    "build",
    "dist",
    "work",
    "*.egg-info",
    "*.so",
    "__pycache__",
)


def run(*command, cwd: Path, timeout: int = 60, **environment: str) -> subprocess.CompletedProcess:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=outside | environment
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of this tree as it is kept, without what builds leave in it."""
    folder = tmp_path_factory.mktemp("source") / "edlm_engine"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*UNWANTED))
    return folder


@pytest.fixture(scope="module")
def sdist(source) -> Path:
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    done = run(sys.executable, "-c", code, source.parent, cwd=source)
    assert done.returncode == 0, done.stderr
    return source.parent / done.stdout.splitlines()[-1]


def test_sdist_is_complete(source, sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kept = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    generated = {name for name in kept if name.startswith("edlm_engine.egg-info/")}
    left_out = {".gitignore", ".ci/run"} | {
        name for name in kept if name.startswith((".benchmarks/", "bench/.benchmarks/"))
    }
    assert kept - names - generated <= left_out
    assert {"CMakeLists.txt", "csrc/bindings.cpp", "edlm_engine/assets/edlm-tiny/model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_version_stands_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"] and "version" not in project["project"]
    assert f"## {edlm_engine.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("has_sources", [True, False])
def test_a_tree_without_its_library_says_so(has_sources, tmp_path):
    (tmp_path / "edlm_engine").mkdir()
    for path in (ROOT / "edlm_engine").glob("*.py"):
        (tmp_path / "edlm_engine" / path.name).write_text(path.read_text())
    if has_sources:
        (tmp_path / "csrc").mkdir()
    done = run(sys.executable, "-c", "import edlm_engine.ops", cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"ImportError: {tmp_path}/edlm_engine/_C.so is missing")
    if has_sources:
        assert "start Python in another folder" in last and f"-e {tmp_path}" in last
    else:
        assert "install edlm_engine anew" in last


def environment(folder: Path) -> Path:
    """The Python of a new virtual environment."""
    done = run(sys.executable, "-m", "venv", folder, cwd=folder.parent, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "python"


def install(python: Path, package: Path, folder: Path):
    """By pip as a user would, but with the given torch."""
    constraint = folder / "constraint.txt"
    constraint.write_text(TORCH)
    done = run(
        python, "-m", "pip", "install", package, cwd=folder, timeout=1500, PIP_CONSTRAINT=str(constraint),
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.skipif(not TORCH, reason="takes minutes: make package")
@pytest.mark.timeout(3000)
def test_installed_from_sdist_and_wheel(sdist, tmp_path):
    """The sdist is built by pip alone, in a new environment; the wheel that comes of it goes into another."""
    first = environment(tmp_path / "first")
    install(first, sdist, tmp_path)
    check_installed(first, tmp_path)
    wheel = run(
        first, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, sdist, cwd=tmp_path, timeout=1500,
        PIP_CONSTRAINT=str(tmp_path / "constraint.txt"),
    )  # fmt: skip
    assert wheel.returncode == 0, wheel.stderr[-3000:]
    [file] = tmp_path.glob("edlm_engine-*.whl")
    assert f"-{edlm_engine.__version__}-cp311-abi3-" in file.name
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "edlm_engine").rglob("*") if path.is_file()}
    assert {name for name in package if "__pycache__" not in name} <= names | {"edlm_engine/_C.so"}
    assert "edlm_engine/_C.so" in names
    second = environment(tmp_path / "second")
    install(second, file, tmp_path)
    check_installed(second, tmp_path)


def check_installed(python: Path, folder: Path):
    """It is used from a folder that knows nothing of the source."""
    away = folder / "away"
    away.mkdir(exist_ok=True)
    where = run(python, "-c", "import edlm_engine; print(edlm_engine.__file__)", cwd=away)
    assert where.stdout.startswith(str(python.parents[1])), where.stderr
    info = run(python.with_name("edlm"), "info", cwd=away)
    assert info.returncode == 0 and edlm_engine.__version__ in info.stdout, info.stderr
    generated = run(python.with_name("edlm"), "generate", PROMPT, cwd=away, timeout=120)
    assert generated.returncode == 0 and "[4, 15, 31]" in generated.stdout, generated.stderr
