"""The comparison's own parts that need no alternative: schedules, jobs, results that survive, the chart."""

import json
from pathlib import Path

import pytest
from scripts import scripts_of

FOLDER = Path(__file__).parents[1] / "bench" / "compare"


@pytest.fixture(scope="module")
def compare():
    pytest.importorskip("matplotlib")
    with scripts_of(FOLDER):
        import cases
        import chart
        import run

        yield cases, chart, run


def test_schedules(compare):
    cases = compare[0]
    for block in cases.BLOCKS:
        for tpf in cases.TPFS:
            steps = cases.steps_per_block(block, tpf)
            share = cases.committed(block, steps)
            assert len(share) == steps and sum(share) == block and min(share) >= 1
    assert cases.way(8, cases.steps_per_block(8, 2.7)) == "block 8, TPF 2.7"
    assert cases.way(8, cases.steps_per_block(8, 3.3)) == "block 8, TPF 4"


def test_jobs_have_names_of_their_own(compare):
    run = compare[2]
    for quick in (True, False):
        names = [job["name"] for job in run.jobs(quick)]
        assert len(set(names)) == len(names)
        assert {job["module"] for job in run.jobs(quick)} == {"ours", "hf", "llamacpp", "peaks"}
    assert len(run.jobs(True)) < len(run.jobs(False))


def test_a_process_that_fails_is_told(compare, monkeypatch, tmp_path):
    run = compare[2]
    monkeypatch.setattr(run, "HERE", tmp_path)
    job = {"module": "broken", "kind": "forwards", "job": {"threads": 1}}
    (tmp_path / "broken.py").write_text("import sys; sys.exit('it broke')")
    assert run.run(job) == {"error": "it broke"}
    (tmp_path / "broken.py").write_text("print('noise'); print('{\"1\": 2.5}')")
    assert run.run(job) == {"1": 2.5}


def test_chart(compare, tmp_path):
    chart, run = compare[1], compare[2]
    setting = "0.6B, prefix 256, 2 threads"
    result = {
        "date": "2026-01-01",
        "machine": {"cpu": "a processor"},
        "results": {
            "forwards": {setting: {"edlm int8": {"1": 2.0, "32": 9.0}, "llama.cpp Q8_0": {"error": "none"}}},
            "generations": {
                setting: {
                    "edlm int8": {"AR": 10.0, "block 8, TPF 2.7": 20.0, "block 16, TPF 2.7": 15.0},
                    "llama.cpp Q4_0": {"AR": 7.0},
                    "llama.cpp Q8_0": {"error": "none"},
                }
            },
        },
    }
    assert chart.best(result["results"]["generations"][setting]) == {
        "edlm int8, diffusion, block 8, TPF 2.7": 20.0, "edlm int8, AR": 10.0, "llama.cpp Q4_0, AR": 7.0,
    }  # fmt: skip
    run.save(tmp_path / "r.json", result)
    assert json.loads((tmp_path / "r.json").read_text()) == result
    chart.draw(result, tmp_path / "r.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.png"]
