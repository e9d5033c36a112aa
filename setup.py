"""Drives CMake, which knows the sources; everything else about the package is in pyproject.toml."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
COMPILING = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}  # commands that do
# A virtual environment that is not activated has its tools beside its Python, not on the path.
TOOLS = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def missing_tool() -> str | None:
    """What a build needs and this machine lacks, in a sentence."""
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(
        _run(*shlex.split(name), "-std=c++17", "-x", "c++", "-fsyntax-only", "-") for name in compilers
    ):
        return (
            f"edlm_engine needs a C++17 compiler ({' or '.join(compilers)} is missing or older): install "
            "g++ >= 10 or clang++ >= 14 (Debian, Ubuntu: the package g++; macOS: xcode-select --install)."
        )
    cmake = _run("cmake", "--version")
    version = re.search(r"version (\d+)\.(\d+)", cmake.stdout if cmake else "")
    if not version or (int(version[1]), int(version[2])) < (3, 22):
        found = f"this is {version[1]}.{version[2]}" if version else "cmake is missing"
        return f"edlm_engine needs CMake >= 3.22 ({found}): install it, for instance by pip install cmake."
    if shutil.which("ninja", path=TOOLS) is None:
        return "edlm_engine needs ninja (it is missing): install it, for instance by pip install ninja."
    return None


def _run(tool: str, *arguments: str) -> subprocess.CompletedProcess | None:
    """None where there is no such tool, or it fails; it reads an empty input."""
    if path := shutil.which(tool, path=TOOLS):
        done = subprocess.run([path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done if done.returncode == 0 else None
    return None


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"  # no Python version in the name: it is no Python module

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / "cmake"  # kept between installs, so that only what changed is compiled
        cmake = shutil.which("cmake", path=TOOLS)
        configure = [
            cmake, "-S", ROOT, "-B", build, "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=TOOLS)}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        for command in (configure, [cmake, "--build", build]):
            if subprocess.run(command).returncode:
                sys.exit("edlm_engine could not be built: what CMake or the compiler said stands above.")


# Before anything else, so that the sentence is not buried in what setuptools and CMake say.
if COMPILING & set(sys.argv[1:]) and (reason := missing_tool()):
    sys.exit(reason)

setup(
    ext_modules=[Extension("edlm_engine._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
