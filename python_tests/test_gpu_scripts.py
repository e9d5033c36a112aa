"""bench/gpu without a GPU: the script runs to its end, measures every op and two models, and outlives a part
that fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench/gpu/run_all.sh"
OPS = {"block_attention", "rms_norm", "silu_mul", "qkv_prepare", "row_stats"}
PARTS = ("loop", "engine", "ops", "kernels", "models_8B", "models_1.5B")


def dry_run(out: Path, *parts: str) -> subprocess.CompletedProcess:
    env = os.environ | {"OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run([SCRIPT, "--dry-run", *parts], env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("gpu")
    return dry_run(out), out


def test_every_part_runs(done):
    process, out = done
    assert process.returncode == 0, process.stdout + process.stderr
    table = process.stdout.splitlines()[-len(PARTS) :]
    assert [line.split()[0] for line in table] == list(PARTS)
    assert all(line.endswith("ok") for line in table), table
    models = [f"models_{name}.{end}" for name in ("1.5B", "8B") for end in ("json", "png")]
    assert sorted(path.name for path in out.iterdir()) == ["kernels.json", "log.txt", *models]


def test_kernels(done):
    document = json.loads((done[1] / "kernels.json").read_text())
    assert document["device"] == "cpu, dry run" and document["failure"] is None
    assert {row["op"] for row in document["results"]} == OPS
    for row in document["results"]:
        assert row["edlm"] > 0, row
        assert not [key for key in row if key.endswith("failed")], row


@pytest.mark.parametrize("model", ["8B", "1.5B"])
def test_models(done, model):
    document = json.loads((done[1] / f"models_{model}.json").read_text())
    # the CPU has no fp8; nothing else is missing
    assert {row["what"] for row in document["left_out"]} <= {"all: engine fp8"}
    where = {(row["quantization"], row["prefix"], row["batch"]) for row in document["forwards"]}
    assert where == {(q, p, b) for q in ("bf16", "int8") for p in (16, 40) for b in (1, 2)}
    for row in document["forwards"]:
        assert row["step_ms"] > 0 and row["of_floor"] == row["floor_ms"] / row["step_ms"]
    ran = [(row["quantization"], row["prefix"], row["batch"]) for row in document["generations"]]
    assert sorted(ran) == sorted([*((q, 16, b) for q in ("bf16", "int8") for b in (1, 2)),
                                  ("bf16", 40, 1), ("bf16", 40, 1), ("int8", 40, 1)])  # fmt: skip
    paper = document["paper"]["tokens_per_forward"]
    for row in document["generations"]:
        scaled = row["tokens_per_s"] * paper / row["tokens_per_forward"]
        assert row["tokens_per_s_scaled_to_paper_tpf"] == pytest.approx(scaled)
        assert row["tokens_per_forward"] == pytest.approx(
            document["block_length"] / document["steps_per_block"]
        )
    assert [row["stepping"] for row in document["loops"]] == ["eager", "direct"]
    for row in document["loops"]:
        assert row["ms_per_step"] > 0 and row["host_ms_per_step"] > 0
    assert [row["stepping"] for row in document["activity"]] == ["eager", "direct"]
    for row in document["activity"]:
        assert row["synchronisations_per_block"] == 0 and row["outside_kernels_share"] is None
    assert [row["what"] for row in document["baselines"]] == [
        "plain PyTorch loop", "transformers AR, static cache", "compiled PyTorch loop",
    ]  # fmt: skip


def test_a_failing_part_is_reported_and_the_rest_runs(tmp_path):
    (tmp_path / "kernels.json").mkdir()  # where a file should go
    process = dry_run(tmp_path, "kernels", "loop")
    assert process.returncode == 1
    assert "FAILED" in process.stdout and "\nloop " in process.stdout
    log = (tmp_path / "log.txt").read_text()
    assert log.count(" ok") == 1 and "=== kernels" in log and "=== ops" not in log
