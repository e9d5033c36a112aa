"""The tables and plots of the recipe's results."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))

import report
from test_recipe_bundle import FINAL

CELLS = {
    "table1/b": {"exact": 0.273, "standard_error": 0.026, "tpf": 1.0},
    "table2/0.1/None": {"exact": 0.06, "standard_error": 0.014, "tpf": 0.954},
    "table2/0.1/0.3": {"exact": 0.017, "standard_error": 0.007, "tpf": 4.649},
    "fig3/4/8": {"exact": 0.17, "standard_error": 0.022, "tpf": 1.0},
}
BUDGET = {
    "count": 300, "steps": 150, "length": 128, "seed": 1, "table1": {"rows": 24},
    "others": {"rows": 12, "views": 4},
}  # fmt: skip


def test_errors_are_in_percent_too():
    assert report.percent({"exact": 0.273, "standard_error": 0.026}) == "27.3 ± 2.6"
    assert report.percent(None) == "–"


def test_tables_have_every_cell_in_its_place():
    assert report.attention_table(CELLS).splitlines()[:4] == [
        "| row | attention | clean context | token shift | exact, % |",
        "| --- | --- | --- | --- | --- |",
        "| b | bidirectional | – | yes | 27.3 ± 2.6 |",
        "| c | bidirectional | – | no | – |",
    ]
    masking = report.masking_table(CELLS).splitlines()
    assert masking[0] == (
        "| λ | one per forward | threshold 0.9 | threshold 0.7 | threshold 0.5 | threshold 0.3 |"
    )
    assert masking[2] == "| uniform | – | – | – | – | – |"
    assert masking[4] == "| 0.1 | 6.0 ± 1.4 at 0.95 | – | – | – | 1.7 ± 0.7 at 4.65 |"
    blocks = report.block_table(CELLS).splitlines()
    assert blocks[0] == "| training block \\ evaluation block | 4 | 8 | 16 | 32 |"
    assert blocks[2:4] == ["| 4 | – | 17.0 ± 2.2 | – | – |", "| 8 | – | – | – | – |"]


@pytest.fixture
def results(tmp_path):
    (tmp_path / "final.json").write_text(json.dumps(FINAL))
    (tmp_path / "ablations.json").write_text(json.dumps({"cells": CELLS, "budget": BUDGET}))
    return tmp_path


def test_the_report_goes_between_its_marks(results):
    readme = results / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nformer\n{report.END}\nafter\n")
    report.write_report(readme, results)
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n\n### Final model\n\n400 held-out problems")
    assert text.endswith(f"![blocks](results/blocks.png)\n\n{report.END}\nafter\n") and "former" not in text
    assert (
        "150 steps (row e twice that) of rows of 128 tokens" in text and "seed 1, then 300 held-out" in text
    )
    assert (
        "trains on 24 rows a step, noised once and whole; the others on 12 rows, the completions noised in 4"
        in text
    )
    report.write_report(readme, results)
    assert readme.read_text() == text


def test_the_readme_has_what_the_results_say(tmp_path):
    """The numbers of the README are those of the files beside it."""
    recipe = Path(report.__file__).parent
    readme = tmp_path / "README.md"
    readme.write_text((recipe / "README.md").read_text())
    report.write_report(readme, recipe / "results")
    assert readme.read_text() == (recipe / "README.md").read_text()


def test_plots_are_drawn(results, monkeypatch):
    plots = pytest.importorskip("plots")
    drawn = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.update({path.name: figure}))
    plots.plot_all(results)
    assert drawn.keys() == {"accuracy_tpf.png", "attention.png", "masking.png", "blocks.png"}
    (bars,) = (
        container for container in drawn["attention.png"].axes[0].containers if hasattr(container, "patches")
    )
    assert [patch.get_height() for patch in bars.patches] == pytest.approx([27.3])
    axes = drawn["accuracy_tpf.png"].axes[0]
    lists = next(line for line in axes.lines if line.get_label() == "lists")
    assert lists.get_xdata().tolist() == pytest.approx([0.951, 4.256, 9.5])
    assert lists.get_ydata().tolist() == pytest.approx([80, 70, 60])
    (curve,) = (container for container in axes.containers if container.get_label() == "all, by threshold")
    low, high = (segment[1] for segment in curve.lines[2][0].get_segments()[0])
    assert (high - low) / 2 == pytest.approx(100 * (0.8 * 0.2 / 400) ** 0.5)
    grid = drawn["blocks.png"].axes[0].images[0].get_array()
    assert grid.shape == (1, 1) and grid[0, 0] == pytest.approx(17)
