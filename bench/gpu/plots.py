"""The chart of a model's JSON: tokens per second and share of the memory's floor over batch and prefix, and
the alternatives at batch 1.

python bench/gpu/plots.py models_8B.json [...] draws it again, as models_8B.png."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"bf16": "#2166ac", "int8": "#1b7837", "fp8": "#b35806"}
STYLES = ("o-", "s--", "^:", "d-.")  # by prefix
PAPER, OTHERS = "#762a83", "#9e9e9e"


def lines(rows: list[dict], along: str, by: str, value) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """{(quantization, row[by]): [(row[along], value(row))]}, all in order."""
    order = list(COLORS)
    found: dict = {}
    for row in sorted(rows, key=lambda row: (order.index(row["quantization"]), row[by], row[along])):
        found.setdefault((row["quantization"], row[by]), []).append((row[along], value(row)))
    return found


def short_prompts(document: dict) -> list[dict]:
    """Generations behind the shortest prompt: longer ones take a large part of the time."""
    rows = document["generations"]
    return [row for row in rows if row["prefix"] == min(other["prefix"] for other in rows)]


def bars(document: dict) -> dict[str, float]:
    """{what: tokens/s} at batch 1 and the paper's tokens per forward, where that is set."""
    found = {}
    for row in document["baselines"]:
        found[row["what"]] = row.get("tokens_per_s_scaled_to_paper_tpf", row["tokens_per_s"])
    paper = document["paper"]
    found[f"paper ({paper['device']})"] = paper["tokens_per_s"]
    for row in short_prompts(document):
        if row["batch"] == 1:
            found[f"edlm {row['quantization']}, {row['stepping']}"] = row["tokens_per_s_scaled_to_paper_tpf"]
    for row in document["loops"]:
        found.setdefault(f"edlm bf16, {row['stepping']}", row["tokens_per_s_scaled_to_paper_tpf"])
    return dict(sorted(found.items(), key=lambda item: item[1]))


def color_of(bar: str) -> str:
    if bar.startswith("paper"):
        return PAPER
    return next((color for name, color in COLORS.items() if bar.startswith(f"edlm {name}")), OTHERS)


def panel(axes, rows: list[dict], along: str, by: str, value) -> None:
    """value(row) over row[along], a line for every quantization and row[by]."""
    found = lines(rows, along, by, value)
    kinds = sorted({kind for _, kind in found})
    for (quantization, kind), points in found.items():
        style = STYLES[kinds.index(kind) % len(STYLES)]
        axes.plot(*zip(*points, strict=True), style, color=COLORS[quantization], ms=4, lw=1.2,
                  label=f"{quantization}, {by} {kind}")  # fmt: skip
    places = sorted({row[along] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, list(map(str, places)))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel(along)
    if found:
        axes.legend(fontsize=6)


def rates_panel(axes, document: dict) -> None:
    tpf = document["paper"]["tokens_per_forward"]
    panel(
        axes, document["forwards"], "batch", "prefix", lambda row: 1e3 * row["batch"] * tpf / row["step_ms"]
    )
    rates = "tokens_per_s_scaled_to_paper_tpf"
    ends = short_prompts(document)
    for row in ends:
        axes.plot(row["batch"], row[rates], "*", color=COLORS[row["quantization"]], ms=10)
    if ends:
        axes.plot([], [], "k*", ms=10, label=f"end to end, prompt of {ends[0]['prefix']} included")
        axes.legend(fontsize=6)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(title=f"Steps alone, at {tpf} tokens per forward", ylabel="tokens per second")


def floor_panel(axes, document: dict, along: str, by: str) -> None:
    rows = document["forwards"]
    panel(axes, rows, along, by, lambda row: row["of_floor"])
    axes.set_ylim(0, 1.05 * max([1.05, *(row["of_floor"] for row in rows)]))
    axes.axhline(1, color="black", lw=0.8)
    axes.set(title="Least time by bytes and copy bandwidth / time of a step", ylabel="share of the floor")


def bars_panel(axes, document: dict) -> None:
    drawn = bars(document)
    container = axes.barh(range(len(drawn)), list(drawn.values()), color=[color_of(bar) for bar in drawn])
    axes.bar_label(container, fmt="%.0f", padding=3, fontsize=8)
    axes.set_yticks(range(len(drawn)), list(drawn), fontsize=8)
    axes.margins(x=0.15)
    axes.set(title="Batch 1, end to end, at the paper's tokens per forward", xlabel="tokens per second")


def draw(document: dict, path: Path) -> None:
    """Writes the chart, PNG, from the document alone; an old one stays until the new one is complete."""
    figure, axes = plt.subplots(2, 2, figsize=(14, 9.5))
    rates_panel(axes[0, 0], document)
    bars_panel(axes[0, 1], document)
    floor_panel(axes[1, 0], document, "batch", "prefix")
    floor_panel(axes[1, 1], document, "prefix", "batch")
    copy = f"copy {document['copy_bytes_per_s'] / 1e9:.0f} GB/s"
    blocks = f"blocks of {document['block_length']} in {document['steps_per_block']} steps"
    title = f"{document['model']} on {document['device']}: {copy}, {blocks}, random weights"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    partial = path.with_suffix(".tmp.png")
    figure.savefig(partial, dpi=110, metadata={"Software": None})
    plt.close(figure)
    partial.replace(path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        draw(json.loads(Path(name).read_text()), Path(name).with_suffix(".png"))
