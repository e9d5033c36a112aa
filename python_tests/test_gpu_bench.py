"""The parts of bench/gpu that count, keep time and draw: on made-up numbers."""

import importlib
import json
import time
from pathlib import Path

import pytest
from scripts import scripts_of

from edlm_engine.checkpoints.checkpoint import Checkpoint

FOLDER = Path(__file__).parents[1] / "bench" / "gpu"


@pytest.fixture(scope="module")
def load():
    """A module of bench/gpu, which are scripts beside each other."""
    with scripts_of(FOLDER):
        yield importlib.import_module


@pytest.mark.parametrize(
    ("name", "weights", "steps"), [("8B", 15.1, 10), ("4B", 8.04, 11), ("1.5B", 3.09, 6)]
)
def test_models_of_the_paper(load, tmp_path, name, weights, steps):
    """Weights in GB: the shapes' arithmetic."""
    model = load("paper").MODELS[name]
    assert model.weight_bytes(None) == pytest.approx(weights * 1e9, rel=0.01)
    assert model.weight_bytes(None) / 2 < model.weight_bytes("int8") < model.weight_bytes(None) / 2 * 1.01
    assert model.steps == steps and sum(model.committed) == model.block
    for one in (model, model.tiny()):
        checkpoint = Checkpoint(one.write_config(tmp_path / "shape"), with_tensors=False)
        config, decoding = checkpoint.model, checkpoint.decoding
        assert decoding.block_length == one.block and decoding.mask_token_id == one.vocab - 2
        assert (config.tied_head, config.qk_norm, config.qkv_bias) == (one.tied, one.qwen == 3, one.qwen == 2)
        head = 0 if config.tied_head else config.vocab_size * config.hidden_size
        # all parameters but norms and biases, and the embedding unless it is the head as well
        assert one.weight_bytes(None) == pytest.approx(2 * (config.num_parameters - head), rel=0.01)
        per_token = 2 * config.num_layers * config.kv_size * 2
        assert one.kv_bytes(100, 3) == 3 * (100 + one.block) * per_token


def test_time_limit(load):
    stopwatch = load("stopwatch")
    with pytest.raises(stopwatch.OutOfTime, match="longer than"), stopwatch.time_limit(0.05):
        time.sleep(5)
    with stopwatch.time_limit(0.05):
        pass
    time.sleep(0.1)  # an alarm that was left would ring now


def test_rows_that_fail_cost_nothing_else(load, tmp_path, monkeypatch):
    models, stopwatch, paper = (load(name) for name in ("models", "stopwatch", "paper"))
    path = tmp_path / "r.json"
    report = models.Report(paper.MODELS["8B"].tiny(), stopwatch.Stopwatch(True), path, seconds=60)

    def fail():
        raise RuntimeError("no such kernel")

    assert report.attempt("loops", {"stepping": "graph"}, fail) is None
    assert report.attempt("loops", {"stepping": "device"}, lambda: time.sleep(5), limit=0.05) is None
    assert report.attempt("loops", {"stepping": "eager"}, lambda: {"ms_per_step": 2.0}, needs=100) is None
    row = report.attempt("loops", {"stepping": "eager"}, lambda: {"ms_per_step": 2.0})
    document = json.loads(path.read_text())
    assert document["loops"] == [row] == [{"stepping": "eager", "ms_per_step": 2.0}]
    assert [(left["what"], left["why"]) for left in document["left_out"]] == [
        ("loops: graph", "RuntimeError: no such kernel"),
        ("loops: device", "OutOfTime: longer than 0 s"),
        ("loops: eager", "no time left"),
    ]


def document(full: bool) -> dict:
    grid = [(q, p, b) for q in ("fp8", "bf16") for p in (512, 4096, 32768) for b in (1, 4, 16, 64)]
    size = {"bf16": 16, "fp8": 8}
    forwards = [
        {"quantization": q, "prefix": p, "batch": b, "step_ms": 0.35 * size[q] + p * b / 1e5,
         "of_floor": 0.9 - b / 200 - p / 1e5}
        for q, p, b in grid if p * b < 5e5
    ]  # fmt: skip
    rate = "tokens_per_s_scaled_to_paper_tpf"
    generations = [
        {"quantization": q, "prefix": 512, "batch": b, "stepping": "device", rate: 8000 * b**0.9 / size[q]}
        for q in size for b in (1, 4)
    ]  # fmt: skip
    generations.append({"quantization": "bf16", "prefix": 4096, "batch": 1, "stepping": "device", rate: 5.0})
    return {
        "model": "8B", "device": "a GPU", "copy_bytes_per_s": 3e12, "block_length": 32, "steps_per_block": 10,
        "paper": {"device": "H100, batch 1", "tokens_per_s": 130.7, "tokens_per_forward": 3.27},
        "forwards": forwards if full else [], "generations": generations if full else [],
        "loops": [{"stepping": "eager", rate: 300.0}] if full else [],
        "baselines": [{"what": "transformers AR", "tokens_per_s": 60.0}, {"what": "loop", rate: 90.0,
                       "tokens_per_s": 80.0}] if full else [],
    }  # fmt: skip


@pytest.mark.parametrize("full", [True, False], ids=["full", "empty"])
def test_chart(load, tmp_path, full):
    pytest.importorskip("matplotlib")
    plots = load("plots")
    if full:
        assert plots.bars(document(full)) == {
            "transformers AR": 60.0, "loop": 90.0, "paper (H100, batch 1)": 130.7, "edlm bf16, eager": 300.0,
            "edlm bf16, device": 500.0, "edlm fp8, device": 1000.0,
        }  # fmt: skip
        found = plots.lines(document(full)["forwards"], "batch", "prefix", lambda row: row["of_floor"])
        assert next(iter(found)) == ("bf16", 512) and [b for b, _ in found["fp8", 32768]] == [1, 4]
    path = tmp_path / "models_8B.json"
    plots.draw(document(full), path.with_suffix(".png"))
    assert [p.name for p in tmp_path.iterdir()] == ["models_8B.png"]
