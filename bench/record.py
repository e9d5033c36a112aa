"""Condense what `make bench` measured (build/bench.json) into bench/results/: medians as JSON, and a chart.

python bench/record.py [NAME]    # bench/results/NAME.json and .png; NAME is the date of the run by default
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from edlm_engine import __version__, ops

HERE = Path(__file__).resolve().parent
RAW = HERE.parent / "build" / "bench.json"


def condensed(raw: dict) -> dict:
    """{"date", "machine", "versions", "medians": {group: {case: {"microseconds", rates and shares …}}}}."""
    cpu = raw["machine_info"]["cpu"]
    medians: dict[str, dict] = defaultdict(dict)
    for one in raw["benchmarks"]:
        case = re.sub(r"^bench\w*\[?|\]$", "", one["name"]) or one["name"]
        microseconds = round(1e6 * one["stats"]["median"], 1)
        medians[one["group"]][case] = {"microseconds": microseconds, **one["extra_info"]}
    return {
        "date": raw["datetime"][:10],
        "machine": {"cpu": cpu.get("brand_raw", "unknown"), "cores": os.cpu_count(), "threads_used": 1},
        "versions": {
            "edlm_engine": __version__,
            "commit": raw["commit_info"]["id"][:12],
            "torch": torch.__version__,
            "isa": ops.build_info()["isa"],
        },
        "medians": dict(medians),
    }


def implementations(cases: dict) -> tuple[float, float] | None:
    """(our microseconds, the library's) of a group that compares the two; of several ways ours is the first,
    the library's the last, which does as much."""
    ours = [one["microseconds"] for name, one in cases.items() if name.startswith("edlm")]
    others = [one["microseconds"] for name, one in cases.items() if name.startswith("torch")]
    return (ours[0], others[-1]) if ours and others else None


def chart(result: dict, path: Path) -> None:
    """How many times as long torch takes, one bar a group; 1 is the same time."""
    pairs = {group: implementations(cases) for group, cases in result["medians"].items()}
    ratios = {group: pair[1] / pair[0] for group, pair in pairs.items() if pair}
    figure, axes = plt.subplots(figsize=(8, 0.28 * len(ratios) + 1.2))
    bars = axes.barh(range(len(ratios)), list(ratios.values()), color="#4c78a8")
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=7)
    axes.set_yticks(range(len(ratios)), list(ratios), fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.1)
    axes.set(xlabel="torch's time / ours, one thread", title=result["machine"]["cpu"])
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main() -> None:
    if not RAW.is_file():
        sys.exit(f"{RAW} is missing: run `make bench` first")
    result = condensed(json.loads(RAW.read_text()))
    name = sys.argv[1] if len(sys.argv) > 1 else result["date"]
    (HERE / "results").mkdir(exist_ok=True)
    out = HERE / "results" / f"{name}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    chart(result, out.with_suffix(".png"))
    print(f"wrote {out} and {out.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
