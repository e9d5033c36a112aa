"""The recipe's plots, from the JSON files in results/."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

TABLE_1 = {
    "b": "bidirectional,\nshift",
    "c": "bidirectional",
    "d": "block-wise,\nno clean ctx,\nshift",
    "e": "block-wise,\nno clean ctx,\nshift, 2x tokens",
    "f": "block-wise,\nclean ctx,\nshift",
    "g": "block-wise,\nclean ctx",
}


def save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def plot_final(results: Path) -> None:
    final = json.loads((results / "final.json").read_text())
    figure, axes = plt.subplots(figsize=(7, 4.2))
    curve = sorted((r["tpf"], r["exact"], r) for r in final["converted"])
    for task in final["base"]["tasks"]:
        points = sorted(
            (r["tasks"][task]["tpf"], 100 * r["tasks"][task]["exact"]) for r in final["converted"]
        )
        axes.plot(*zip(*points, strict=True), marker=".", lw=1, label=task)
    exact = np.array([100 * e for _, e, _ in curve])
    error = 100 * np.sqrt(exact / 100 * (1 - exact / 100) / final["count"])
    axes.errorbar(
        [t for t, *_ in curve], exact, error, color="black", marker="o", ms=4, label="all, by threshold"
    )
    for tpf, value, r in curve:
        if r["threshold"] in (0.9, 0.7, 0.5):
            axes.annotate(
                f"{r['threshold']}",
                (tpf, 100 * value),
                textcoords="offset points",
                xytext=(3, -11),
                fontsize=8,
            )
    axes.axhline(
        100 * final["base"]["exact"], color="grey", ls="--", lw=1, label="AR base (1 token per forward)"
    )
    axes.set(xlabel="tokens per denoising forward", ylabel="exact, %", title="edlm-tiny on held-out problems")
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.3)
    save(figure, results / "accuracy_tpf.png")


def plot_table_1(cells: dict, results: Path) -> None:
    rows = [row for row in TABLE_1 if f"table1/{row}" in cells]
    values = [cells[f"table1/{row}"] for row in rows]
    figure, axes = plt.subplots(figsize=(8, 3.6))
    heights = [100 * value["exact"] for value in values]
    errors = [100 * value["standard_error"] for value in values]
    bars = axes.bar(range(len(rows)), heights, yerr=errors, capsize=3, color="#4c78a8")
    axes.bar_label(bars, fmt="%.1f", label_type="center", color="white")
    axes.set_xticks(range(len(rows)), [f"({row}) {TABLE_1[row]}" for row in rows], fontsize=8)
    axes.set(ylabel="exact, %", title="Attention pattern (as Table 1), one token per forward")
    save(figure, results / "attention.png")


def plot_table_2(cells: dict, results: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.5, 4))
    for name in ("uniform", "0.25", "0.1"):
        points = sorted(
            (c["tpf"], 100 * c["exact"], 100 * c["standard_error"])
            for key, c in cells.items()
            if key.startswith(f"table2/{name}/")
        )
        if points:
            label = name if name == "uniform" else f"λ = {name}"
            tpf, exact, error = zip(*points, strict=True)
            axes.errorbar(tpf, exact, error, marker="o", ms=4, capsize=2, label=label)
    axes.set(xlabel="tokens per forward", ylabel="exact, %", title="Masking in training (as Table 2)")
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, results / "masking.png")


def plot_fig_3(cells: dict, results: Path) -> None:
    keys = [tuple(map(int, key.split("/")[1:])) for key in cells if key.startswith("fig3/")]
    training, evaluation = sorted({t for t, _ in keys}), sorted({e for _, e in keys})
    grid = np.full((len(training), len(evaluation)), np.nan)
    for t, e in keys:
        grid[training.index(t), evaluation.index(e)] = 100 * cells[f"fig3/{t}/{e}"]["exact"]
    figure, axes = plt.subplots(figsize=(5, 4))
    axes.imshow(grid, cmap="viridis")
    middle = np.nanmean(grid)
    for (row, column), value in np.ndenumerate(grid):
        colour = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(evaluation)), evaluation)
    axes.set_yticks(range(len(training)), training)
    axes.set(xlabel="evaluation block", ylabel="training block", title="Exact, % (as Fig. 3)")
    save(figure, results / "blocks.png")


def plot_all(results: Path) -> None:
    plot_final(results)
    cells = json.loads((results / "ablations.json").read_text())["cells"]
    plot_table_1(cells, results)
    plot_table_2(cells, results)
    plot_fig_3(cells, results)
