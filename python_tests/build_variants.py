"""Builds of the extension beside the installed one, by CMake in folders of their own under build/."""

import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


@contextmanager
def alone(folder: Path):
    """While another process builds in that folder, which is made if need be, wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(name: str, target: str, *options: str) -> Path:
    """Brings build/<name>/<target>.so up to date; what the compilers say is added to build/<name>/log."""
    with alone(ROOT / "build" / name):
        return _build(ROOT / "build" / name, target, *options)


def _build(folder: Path, target: str, *options: str) -> Path:
    ninja = shutil.which("ninja", path=TOOLS)
    jobs = str(max(1, (os.cpu_count() or 1) // 2))
    for command in (
        ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
         f"-DPython3_EXECUTABLE={sys.executable}", "-DEDLM_ISAS=scalar", *options],
        ["cmake", "--build", folder, "--target", target, "--parallel", jobs],
    ):  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with open(folder / "log", "a") as log:
            log.write(done.stdout)
        assert done.returncode == 0, done.stdout[-5000:]
    return folder / f"{target}.so"


def package_with(library: Path, folder: Path) -> Path:
    """A folder for PYTHONPATH in which edlm_engine is this one, but for its native library."""
    package = folder / "edlm_engine"
    package.mkdir(parents=True)
    for path in (ROOT / "edlm_engine").iterdir():
        if path.name not in ("_C.so", "__pycache__"):
            (package / path.name).symlink_to(path)
    (package / "_C.so").symlink_to(library)
    return folder


def run_with(package: Path, *arguments, **environment: str) -> subprocess.CompletedProcess:
    """Python with the packages of that folder before all others."""
    paths = os.pathsep.join((str(package), str(ROOT / "python_tests")))
    return subprocess.run(
        [sys.executable, *arguments], cwd=package, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )  # fmt: skip
