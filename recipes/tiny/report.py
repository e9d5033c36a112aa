"""Write the measured tables into README.md, between its two marks."""

from __future__ import annotations

import json
from pathlib import Path

from ablate import BLOCKS, TABLE_2, THRESHOLDS
from bundle import score_table

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PATTERNS = {
    "b": "bidirectional | – | yes",
    "c": "bidirectional | – | no",
    "d": "block-wise | no | yes",
    "e": "block-wise, 2x tokens | no | yes",
    "f": "block-wise | yes | yes",
    "g": "block-wise | yes | no",
}


def percent(cell: dict | None) -> str:
    if cell is None:
        return "–"
    return f"{100 * cell['exact']:.1f} ± {100 * cell['standard_error']:.1f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def attention_table(cells: dict) -> str:
    rows = [[row, *text.split(" | "), percent(cells.get(f"table1/{row}"))] for row, text in PATTERNS.items()]
    return table(["row", "attention", "clean context", "token shift", "exact, %"], rows)


def masking_table(cells: dict) -> str:
    rows = []
    for name in TABLE_2:
        found = [cells.get(f"table2/{name}/{threshold}") for threshold in THRESHOLDS]
        rows.append([name, *(f"{percent(c)} at {c['tpf']:.2f}" if c else "–" for c in found)])
    heads = ["one per forward" if t is None else f"threshold {t}" for t in THRESHOLDS]
    return table(["λ", *heads], rows)


def block_table(cells: dict) -> str:
    rows = [
        [f"{training}", *(percent(cells.get(f"fig3/{training}/{evaluation}")) for evaluation in BLOCKS)]
        for training in BLOCKS
    ]
    return table(["training block \\ evaluation block", *map(str, BLOCKS)], rows)


def measured(results: Path) -> str:
    final = json.loads((results / "final.json").read_text())
    ablations = json.loads((results / "ablations.json").read_text())
    cells, budget = ablations["cells"], ablations["budget"]
    plain, views = budget["table1"], budget["others"]
    settings = (
        f"Every cell: {budget['steps']} steps (row e twice that) of rows of {budget['length']} tokens, same "
        f"base, seed {budget['seed']}, then {budget['count']} held-out problems; ± is one standard error. "
        f"The first table trains on {plain['rows']} rows a step, noised once and whole; the others on "
        f"{views['rows']} rows, the completions noised in {views['views']} views."
    )
    count = final["count"]
    parts = [
        f"### Final model\n\n{count} held-out problems, by the engine.\n\n{score_table(final)}",
        "![accuracy against tokens per forward](results/accuracy_tpf.png)",
        f"### Ablations\n\n{settings}",
        "Attention pattern, uniform masking, one token per forward (the paper's Table 1):",
        attention_table(cells),
        "![attention patterns](results/attention.png)",
        "Uniform or position-dependent masking, exact % at tokens per forward (the paper's Table 2):",
        masking_table(cells),
        "![masking](results/masking.png)",
        "Training and evaluation block, exact %, uniform masking, one token per forward (Fig. 3):",
        block_table(cells),
        "![blocks](results/blocks.png)",
    ]
    return "\n\n".join(parts)


def write_report(readme: Path, results: Path) -> None:
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n\n{measured(results)}\n\n{END}{after}")
