"""bench/gpu without a GPU: the script runs to its end, measures every op, and outlives a part that fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "bench/gpu/run_all.sh"
OPS = {"block_attention", "rms_norm", "silu_mul", "qkv_prepare", "row_stats"}


def dry_run(out: Path, **env) -> subprocess.CompletedProcess:
    env = os.environ | {"OUT": str(out), "PYTHON": sys.executable} | env
    return subprocess.run([SCRIPT, "--dry-run"], env=env, capture_output=True, text=True)


def test_dry_run(tmp_path):
    done = dry_run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "kernels.json").read_text())
    assert document["device"] == "cpu, dry run" and document["failure"] is None
    assert {row["op"] for row in document["results"]} == OPS
    for row in document["results"]:
        assert row["edlm"] > 0, row
        assert not [key for key in row if key.endswith("failed")], row
    assert "\nops " in done.stdout and "\nkernels " in done.stdout


def test_a_failing_part_is_reported_and_the_rest_runs(tmp_path):
    (tmp_path / "kernels.json").mkdir()  # where a file should go
    done = dry_run(tmp_path)
    assert done.returncode == 1
    assert "FAILED" in done.stdout and "\nops " in done.stdout
    assert (tmp_path / "summary.txt").read_text().count("ok") == 1
