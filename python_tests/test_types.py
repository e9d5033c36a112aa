"""Types: what mypy makes of a program that uses the package, and of the package's public modules."""

import ast
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import typing
from dataclasses import fields
from pathlib import Path

import pytest

import edlm_engine
from edlm_engine import SamplingParams, policies
from edlm_engine.arguments import Overrides, StreamOptions

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edlm_engine"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def installed(tmp_path) -> Path:
    """The Python of an environment where the package is installed beside what it needs."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=120
    )
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "edlm_engine").symlink_to(PACKAGE)
    (site / "all.pth").write_text(f"{tmp_path / 'here'}\n{sysconfig.get_path('purelib')}\n")
    return tmp_path / "venv" / "bin" / "python"


def test_programs_and_the_public_modules_are_strictly_typed(pytestconfig, installed, tmp_path):
    """In one run, as reading torch takes ten seconds; the cache outlives the session."""
    pytest.importorskip("mypy")
    shutil.copy(ROOT / "python_tests" / "typed_sample.py", tmp_path)
    public = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["modules"]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", installed]
    command += ["--cache-dir", pytestconfig.cache.mkdir("mypy")]
    command += [part for module in ("typed_sample", *public) for part in ("-m", module)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.stdout == f"Success: no issues found in {1 + len(public)} source files\n"


def declared(path: Path) -> set[str]:
    """The names that type checkers find in the TYPE_CHECKING block of a module."""
    blocks = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    block = next(node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.asname or alias.name for line in block.body for alias in line.names}


@pytest.mark.parametrize("module", (edlm_engine, policies), ids=lambda module: module.__name__)
def test_type_checkers_see_the_names_that_are_there(module):
    assert declared(Path(module.__file__)) == set(module.__all__) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_keywords_are_the_fields_of_sampling_params():
    known, typed = typing.get_type_hints(SamplingParams), typing.get_type_hints(Overrides)
    assert typed == {field.name: known[field.name] for field in fields(SamplingParams)}
    assert typing.get_type_hints(StreamOptions).keys() - typed.keys() == {"timeout", "priority"}


def test_annotations_can_be_resolved():
    """For whoever builds something of the signatures."""
    for name in ("__init__", "generate", "agenerate", "stream", "astream", "chat", "achat", "stats"):
        assert "return" in typing.get_type_hints(getattr(edlm_engine.Engine, name))


def test_names_come_when_asked_for():
    code = """
import sys, edlm_engine
for name in ("Engine", "benchmark", "policies", "SamplingParams"):
    assert name in dir(edlm_engine) and name not in vars(edlm_engine), name
assert "torch" not in sys.modules
assert edlm_engine.EngineBusyError and edlm_engine.benchmark.measure and "torch" not in sys.modules
assert edlm_engine.policies.Threshold(0.9) == edlm_engine.SamplingParams().commit_policy
try: edlm_engine.nothing
except AttributeError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("module 'edlm_engine' has no attribute 'nothing'\n", "")
