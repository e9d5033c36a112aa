"""The chart of a comparison: time per forward against rows, and tokens per second end to end."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {
    "edlm int8": "#1b7837",
    "edlm bf16": "#7fbf7b",
    "transformers bf16": "#f1a340",
    "transformers compiled": "#b35806",
    "llama.cpp bf16": "#d1e5f0",
    "llama.cpp Q8_0": "#67a9cf",
    "llama.cpp Q4_0": "#2166ac",
}


def best(generations: dict) -> dict[str, float]:
    """{bar: tokens/s}: AR of each column, and of those that denoise the fastest block length at TPF 2.7."""
    bars = {}
    for column, rates in generations.items():
        if "error" in rates:
            continue
        blocks = {name: rate for name, rate in rates.items() if name.endswith("TPF 2.7")}
        if blocks:
            fastest = max(blocks, key=blocks.get)
            loop = "plain loop" if column.startswith("transformers") else "diffusion"
            bars[f"{column}, {loop}, {fastest}"] = blocks[fastest]
        bars[f"{column}, AR"] = rates["AR"]
    return bars


def color_of(bar: str) -> str:
    return next(color for column, color in COLORS.items() if bar.startswith(column))


def forwards_panel(axes, label: str, columns: dict) -> None:
    for column, times in columns.items():
        if "error" not in times:
            rows = [int(r) for r in times]
            axes.plot(rows, list(times.values()), "o-", color=COLORS[column], label=column, ms=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=7)
    axes.grid(alpha=0.3, which="both")
    axes.set(title=f"One forward, {label}", xlabel="rows", ylabel="ms")
    axes.legend(fontsize=7)


def generations_panel(axes, label: str, columns: dict) -> None:
    bars = dict(sorted(best(columns).items(), key=lambda item: item[1]))
    drawn = axes.barh(range(len(bars)), list(bars.values()), color=[color_of(bar) for bar in bars])
    axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=7)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=7)
    axes.margins(x=0.12)
    axes.set(title=f"End to end, {label}", xlabel="tokens per second")


def draw(result: dict, path: Path) -> None:
    """One row of panels for every setting that was run end to end."""
    found = result["results"]
    labels = list(found.get("generations", {})) or list(found.get("forwards", {}))
    if not labels:
        return
    figure, axes = plt.subplots(len(labels), 2, figsize=(13, 4.6 * len(labels)), squeeze=False)
    for (left, right), label in zip(axes, labels, strict=True):
        forwards_panel(left, label, found.get("forwards", {}).get(label, {}))
        generations_panel(right, label, found.get("generations", {}).get(label, {}))
    figure.suptitle(
        f"{result['machine']['cpu']}, {result['date']}: random weights, Qwen3 shapes", fontsize=10
    )
    figure.tight_layout()
    partial = path.with_suffix(".tmp.png")
    figure.savefig(partial, dpi=130, metadata={"Software": None})
    plt.close(figure)
    partial.rename(path)
