"""Draw the README's two figures: python recipes/figures/make.py (needs matplotlib and the built package)."""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from edlm_engine import Engine
from edlm_engine.checkpoints.folder import resolve

HERE = Path(__file__).parent
SURENESS = LinearSegmentedColormap.from_list("sureness", ["#f4a582", "#fde6a8", "#a6dba0", "#5aae61"])


def draw_denoising(model: str, path: Path):
    """Every denoising step of one real request as a row of tokens, coloured where they are committed: of the
    model's examples the one that takes most steps."""
    examples = json.loads((resolve(model) / "examples.json").read_text())
    with Engine(model, dtype="float32") as engine:
        runs = [(list(engine.stream(e["prompt"], max_new_tokens=96)), e) for e in examples]
        chunks, example = max(runs, key=lambda run: len(run[0]))
        pieces = {
            p: engine.tokenizer.piece(t)
            for c in chunks
            for p, t in zip(c.positions, c.token_ids, strict=True)
        }
        width = max(c.block.stop - c.block.start for c in chunks)
    figure, axes = plt.subplots(figsize=(width * 0.62, len(chunks) * 0.36 + 0.9))
    known: dict[int, float] = {}
    for row, chunk in enumerate(chunks):
        fresh = dict(zip(chunk.positions, chunk.confidences, strict=True))
        known |= fresh
        for position in chunk.block:
            x = position - chunk.block.start
            colour = (
                SURENESS(fresh[position])
                if position in fresh
                else "#f2f2f2"
                if position in known
                else "#c9ced6"
            )
            axes.add_patch(Rectangle((x + 0.03, row + 0.08), 0.94, 0.84, facecolor=colour))
            if position in known:
                text = pieces[position].replace("<|endoftext|>", "eos").replace("\n", "↵").replace("$", r"\$")
                size = 8 if len(text) < 7 else 6
                weight = "bold" if position in fresh else "normal"
                axes.text(x + 0.5, row + 0.52, text, ha="center", va="center", fontsize=size, weight=weight)
        axes.text(-0.15, row + 0.5, f"forward {row + 1}", ha="right", va="center", fontsize=8)
    axes.set(xlim=(-1.8, width), ylim=(len(chunks), 0))
    axes.axis("off")
    axes.set_title(f"“{example['prompt'].strip()}”", fontsize=9, loc="left", wrap=True)
    _save(figure, path)


def draw_query_blocks(path: Path):
    """Which keys the rows of one forward see: a fused commit and the next block's first step."""
    blocks = [
        ("commit: clean block", 8, 4, 12, "#5aae61"),
        ("first step: block of masks", 12, 4, 16, "#f4a582"),
    ]
    figure, axes = plt.subplots(figsize=(7.4, 3.6))
    row = 0
    for label, start, length, kv_len, colour in blocks:
        for i in range(length):
            for key in range(16):
                face = colour if key < kv_len else "#f2f2f2"
                axes.add_patch(Rectangle((key + 0.04, row + 0.04), 0.92, 0.92, facecolor=face))
            axes.text(-0.2, row + 0.5, f"row {start + i}", ha="right", va="center", fontsize=8)
            row += 1
        text = f"{label}\nQueryBlock(start={start}, length={length}, kv_len={kv_len})"
        axes.text(16.4, row - length / 2, text, va="center", fontsize=8)
    for key, text in ((4, "prefix, cached"), (10, "clean block"), (14, "masks")):
        axes.text(key, -0.35, text, ha="center", fontsize=8)
    axes.vlines([8, 12], -0.2, 8, color="black", linewidth=0.8)
    axes.set(xlim=(-1.6, 25.5), ylim=(8.2, -0.9))
    axes.axis("off")
    _save(figure, path)


def _save(figure, path: Path):
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="edlm-tiny", help="bundled name or folder with an examples.json")
    arguments = parser.parse_args()
    draw_query_blocks(HERE / "query_blocks.png")
    draw_denoising(arguments.model, HERE / "denoising.png")


if __name__ == "__main__":
    main()
