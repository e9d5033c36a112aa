"""This engine beside what one would otherwise run on a CPU: one run, one JSON, one chart.

python bench/compare/run.py [--quick] [--only TEXT] [--name NAME]

`make compare` runs it in an environment that has the alternatives. Every measurement is a process of its own,
with its number of threads; results are written after each, and a run that was stopped goes on where it was.
--quick: the 0.6B shape at one prefix; --only: jobs whose name holds TEXT. Keep the machine quiet.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cases import ALTERNATIVES, BLOCKS, NEW_TOKENS, ROWS, TPFS
from chart import draw

import edlm_engine

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
LIMIT_S = 1500
BUSY = "import sys\nwhile True: sum(range(10**6))"


def jobs(quick: bool) -> list[dict]:
    """Every measurement: name, column, module and what the module is asked."""
    found = []

    def add(kind: str, column: str, label: str, **job):
        module, options = ALTERNATIVES.get(column, (job.pop("module", "ours"), {}))
        found.append({"name": f"{kind} {label} {column}", "kind": kind, "label": label, "column": column,
                      "module": module, "job": {"what": kind.split()[0], **options, **job}})  # fmt: skip

    settings = [("0.6B", 256, 2)] if quick else [
        ("0.6B", 256, 2), ("1.7B", 256, 2), ("0.6B", 256, 1), ("0.6B", 2048, 2), ("1.7B", 256, 1),
        ("1.7B", 2048, 2),
    ]  # fmt: skip
    add("peaks", "machine", "2 threads", module="peaks", threads=2)
    add("peaks", "machine", "1 thread", module="peaks", threads=1)
    for size, prefix, threads in settings:
        label = f"{size}, prefix {prefix}, {threads} thread{'s' * (threads > 1)}"
        common = {"size": size, "prefix": prefix, "threads": threads}
        usual = (size, prefix, threads) == ("0.6B", 256, 2)
        for column in ALTERNATIVES:
            if column == "transformers compiled" and not usual:
                continue  # a minute of compiling for every number of rows
            rows = (1, 32) if column == "transformers compiled" else ROWS
            add("forwards", column, label, rows=rows, **common)
            if usual and column != "transformers compiled":
                add("forwards busy", column, label, rows=(1, 32), **common)
        if prefix == 256 and threads == 2:
            for column in ALTERNATIVES:
                if column != "transformers compiled":
                    fixed = {"blocks": BLOCKS, "tpfs": TPFS, "tokens": NEW_TOKENS}
                    if column == "transformers bf16" and size != "0.6B":
                        fixed |= {"blocks": (32,), "tpfs": (2.7,)}
                    add("generations", column, label, **fixed, **common)
    for column in ("edlm bf16", "edlm int8", "transformers bf16"):
        add("tiny", column, "edlm-tiny, 1 thread", count=20 if quick else 100, threads=1)
    return found


def run(job: dict) -> dict:
    """The result of one process, or {"error": its last words}."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job["job"]["threads"]),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, HERE / f"{job['module']}.py", json.dumps(job["job"])]
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if job["kind"].endswith("busy") else None
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"longer than {LIMIT_S} s"}
    finally:
        if busy:
            busy.kill()
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(lines[-1])


def machine() -> dict:
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    versions = {"edlm_engine": edlm_engine.__version__}
    for package in ("torch", "transformers", "llama_cpp_python"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return {
        "cpu": model,
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def save(path: Path, result: dict) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the 0.6B shape at one prefix")
    parser.add_argument("--only", default="", help="jobs whose name holds this")
    parser.add_argument("--name", default=f"{datetime.date.today()}-compare", help="of the result's files")
    options = parser.parse_args()
    path = RESULTS / f"{options.name}.json"
    result = json.loads(path.read_text()) if path.exists() else {"results": {}}
    result |= {"date": str(datetime.date.today()), "machine": machine()}
    todo = [j for j in jobs(options.quick) if options.only in j["name"]]
    for i, job in enumerate(todo):
        place = result["results"].setdefault(job["kind"], {}).setdefault(job["label"], {})
        if "error" not in place.get(job["column"], {"error": "new"}):
            continue
        print(f"[{i + 1}/{len(todo)}] {job['name']}", end=" ... ", flush=True)
        place[job["column"]] = run(job)
        print(json.dumps(place[job["column"]]), flush=True)
        save(path, result)
    draw(result, path.with_suffix(".png"))
    print(f"wrote {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
