"""Plant faults into one module, one at a time, and see which of them its tests notice.

python bench/mutants/run.py edlm_engine/core/scheduler.py [--tests FILE …] [--sample N] [--no-record]

The tests run in a copy of the tree, each time in a process of their own, forked from one in which all that
does not change is loaded already. Prints the score and what survived, and keeps them in the file RESULTS. A
run that takes too long has noticed its fault by time. equivalent.toml lists what computes the same as the
right code, and does not count.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from faults import Fault, faults_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "bench/results/mutants.json"
SLOWEST = 5  # times as long as the right code may a run take, and LEAST_S more
LEAST_S = 10
# What the tests' processes find loaded: all that does not change from one fault to the next.
LOADED = (
    "torch", "numpy", "safetensors.torch", "tokenizers", "huggingface_hub", "jinja2", "rich.progress",
    "typer", "pytest_timeout", "pytest_benchmark.plugin", "_hypothesis_pytestplugin", "hypothesis.strategies",
)  # fmt: skip


def tests_of(module: str) -> list[str]:
    """The test files of a module: what tests.toml says, else that of its stem."""
    table = tomllib.loads((HERE / "tests.toml").read_text())
    stem = f"convert_{Path(module).stem}" if "convert/" in module else Path(module).stem
    names = table.get(module.removeprefix("edlm_engine/"), [f"test_{stem}.py"])
    return [f"python_tests/{name}" for name in names]


def copy_tree(target: Path):
    """What git knows of, new files included, and the built library."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    library = ROOT / "edlm_engine/_C.so"
    if not library.exists():
        sys.exit(f"{library} is missing: build it with `pip install --no-build-isolation -e .`")
    for name in [*filter(None, files), "edlm_engine/_C.so"]:
        if (ROOT / name).exists():  # a file that is deleted, but not yet for git
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def _run_pytest(tree: Path, tests: list[str]):
    os.setsid()
    os.chdir(tree)
    log = os.open(tree / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path.insert(0, str(tree))
    sys.dont_write_bytecode = True
    assert importlib.util.find_spec("edlm_engine").origin.startswith(str(tree))
    phases = [
        hypothesis.Phase.explicit,
        hypothesis.Phase.generate,
    ]  # a failure is enough, it need not be short
    hypothesis.settings.register_profile(
        "mutants", phases=phases, derandomize=True, database=None, deadline=None
    )
    hypothesis.settings.load_profile("mutants")
    quick = [
        "--assert=plain",
        *(f"-pno:{name}" for name in ("cacheprovider", "anyio", "unraisableexception")),
    ]
    options = ["-x", *quick, "--rootdir", str(tree)]
    os._exit(int(pytest.main([*options, *tests])))


def outcome(tree: Path, tests: list[str], limit: float) -> str:
    """passed, failed, or timeout."""
    process = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(tree, tests))
    process.start()
    process.join(limit)
    in_time = process.exitcode is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and what the tests have started
    process.join()
    if not in_time:
        return "timeout"
    if process.exitcode in (3, 4, 5):
        sys.exit(f"pytest could not run {' '.join(tests)}:\n{(tree / 'tests.log').read_text()[-2000:]}")
    return "passed" if process.exitcode == 0 else "failed"


def equivalents(module: str) -> set[tuple[str, str]]:
    entries = tomllib.loads((HERE / "equivalent.toml").read_text()).get(
        module.removeprefix("edlm_engine/"), []
    )
    return {(" ".join(entry["before"].split()), " ".join(entry["after"].split())) for entry in entries}


def plant(module: str, tests: list[str], faults: list[Fault]) -> tuple[Counter, list[Fault]]:
    """How many had which outcome, and those that no test noticed."""
    counts, survivors = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        began = time.monotonic()
        if outcome(tree, tests, 600) != "passed":
            sys.exit(f"the tests fail without a fault:\n{(tree / 'tests.log').read_text()[-3000:]}")
        limit = SLOWEST * (time.monotonic() - began) + LEAST_S
        right = (tree / module).read_text()
        for number, fault in enumerate(faults, 1):
            (tree / module).write_text(fault.source)
            result = outcome(tree, tests, limit)
            counts[result] += 1
            if result == "passed":
                survivors.append(fault)
            if result != "failed":
                print(f"{number}/{len(faults)} {result}: line {fault.line}", flush=True)
                print(f"    - {fault.before}\n    + {fault.after}", flush=True)
        (tree / module).write_text(right)
    return counts, survivors


def record(module: str, entry: dict):
    every = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    every[module] = entry
    RESULTS.write_text(json.dumps(dict(sorted(every.items())), indent=1, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("module", help="such as edlm_engine/core/scheduler.py")
    parser.add_argument("--tests", nargs="+", help="test files, instead of those that tests.toml names")
    parser.add_argument("--sample", type=int, help="only so many faults, drawn with a fixed seed")
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args()
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()
    module, tests = given.module, given.tests or tests_of(given.module)
    known = equivalents(module)
    every = faults_of(ROOT / module)
    for before, after in known - {(fault.before, fault.after) for fault in every}:
        print(f"equivalent.toml: {module} has no such fault any more: - {before} + {after}")
    every = [fault for fault in every if (fault.before, fault.after) not in known]
    faults = every
    if given.sample and given.sample < len(every):
        faults = sorted(random.Random(0).sample(every, given.sample), key=lambda fault: fault.line)
    counts, survivors = plant(module, tests, faults)
    caught = counts["failed"] + counts["timeout"]
    score = round(100 * caught / max(1, len(faults)), 1)
    print(f"{module}: {score} % of {len(faults)} faults noticed, {counts['timeout']} of them by time; "
          f"{len(survivors)} survived")  # fmt: skip
    if not given.no_record:
        entry = {
            "date": datetime.date.today().isoformat(), "score_percent": score, "faults": len(every),
            "planted": len(faults), "failed": counts["failed"], "by_time": counts["timeout"],
            "equivalent": len(known), "tests": tests,
            "survivors": [{"line": f.line, "before": f.before, "after": f.after} for f in survivors],
        }  # fmt: skip
        record(module, entry)


if __name__ == "__main__":
    main()
