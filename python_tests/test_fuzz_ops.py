"""No op reads or writes out of bounds, hangs or ends the process, whatever its arguments are.

See op_fuzzer.py. EDLM_FUZZ=<cases> (make fuzz) tries so many instead of a few hundred."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("op_fuzzer.py")
CASES = int(os.environ.get("EDLM_FUZZ", "600"))
BATCH = 2000  # of one process
ENOUGH = 300  # cases in which every op is called with success and without


@pytest.mark.timeout(570)
@pytest.mark.parametrize("batch", range(-(-CASES // BATCH)))
def test_absurd_arguments(batch, tmp_path):
    cases, log = min(BATCH, CASES - batch * BATCH), tmp_path / "case.json"
    command = [sys.executable, FUZZER, str(cases), str(batch), log]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    case = log.read_text().strip() if log.exists() else "none"
    assert done.returncode == 0, f"ended with {done.returncode} in {case}\n{done.stderr[-4000:]}"
    counts = json.loads(done.stdout)
    assert sum(sum(count.values()) for count in counts.values()) >= min(cases, ENOUGH)
    for op, count in counts.items():
        assert cases < ENOUGH or set(count) == {"done", "refused"}, f"{op}: {count}"
