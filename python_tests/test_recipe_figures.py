"""The README's figures, as drawn from a real run and from the lists of query blocks."""

import importlib.util
import json
from pathlib import Path

import pytest
from matplotlib.colors import same_color
from matplotlib.patches import Rectangle

from edlm_engine import Engine
from edlm_engine.checkpoints.folder import ASSETS


@pytest.fixture(scope="module")
def make():
    path = Path(__file__).parents[1] / "recipes" / "figures" / "make.py"
    spec = importlib.util.spec_from_file_location("figures_make", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def saved(make, monkeypatch):
    figures = {}
    monkeypatch.setattr(make, "_save", lambda figure, path: figures.update({path.name: figure}))
    return figures


def rectangles(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_query_blocks_see_the_keys_before_their_end(make, saved):
    make.draw_query_blocks(Path("query_blocks.png"))
    found = rectangles(saved["query_blocks.png"])
    seen = [patch for patch in found if not same_color(patch.get_facecolor(), "#f2f2f2")]
    assert len(found) == 8 * 16 and len(seen) == 4 * 12 + 4 * 16
    labels = [text.get_text() for text in saved["query_blocks.png"].axes[0].texts]
    assert "row 8" in labels and "row 15" in labels


@pytest.mark.timeout(120)
def test_the_denoising_is_a_row_of_the_block_per_forward(make, saved):
    make.draw_denoising("edlm-tiny", Path("denoising.png"))
    examples = json.loads((ASSETS / "edlm-tiny" / "examples.json").read_text())
    with Engine("edlm-tiny", dtype="float32") as engine:
        steps = max(len(list(engine.stream(e["prompt"], max_new_tokens=96))) for e in examples)
        block = 16
    figure = saved["denoising.png"]
    assert len(rectangles(figure)) == steps * block
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert f"forward {steps}" in labels and f"forward {steps + 1}" not in labels
