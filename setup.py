"""Drives CMake, which knows the sources; everything else about the package is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"  # no Python version in the name: it is no Python module

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / "cmake"  # kept between installs, so that only what changed is compiled
        # A virtual environment that is not activated has its ninja beside its Python, not on the path.
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        for tool in ("cmake", "ninja"):
            if shutil.which(tool, path=path) is None:
                sys.exit(f"edlm_engine needs {tool} to build: install it")
        configure = [
            "cmake", "-S", ROOT, "-B", build, "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=path)}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", build], check=True)


setup(
    ext_modules=[Extension("edlm_engine._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
