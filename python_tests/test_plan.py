import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "c++")


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
def test_plan_and_random_headers(tmp_path):
    program = tmp_path / "plan_test"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{HERE.parent / 'csrc'}"]
    subprocess.run([COMPILER, *flags, HERE / "plan_test.cpp", "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
