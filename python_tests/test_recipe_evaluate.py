"""The recipe's accuracy and tokens per forward by the engine."""

import json
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))

import evaluate
import quick
import tasks


class Oracle:
    """An engine that answers right, but for the problems in `wrong`: 6 tokens in 2 forwards, or 9 in 1."""

    def __init__(self, problems, wrong=()):
        self.answers = {p.prompt: ("?" if i in wrong else p.completion) for i, p in enumerate(problems)}
        self.wrong, self.asked = wrong, []

    def generate(self, prompts, **params):
        self.asked.append(params)
        shapes = [(9, 1) if i in self.wrong else (6, 2) for i in range(len(prompts))]
        return [
            SimpleNamespace(text=self.answers[prompt], token_ids=[0] * tokens, nfe=nfe)
            for prompt, (tokens, nfe) in zip(prompts, shapes, strict=True)
        ]


def test_accuracy_and_tokens_per_forward_by_task():
    problems = quick.sample(8)  # two of each task
    first = next(i for i, p in enumerate(problems) if p.task == "lists")
    engine = Oracle(problems, {first})
    found = evaluate.engine_accuracy(engine, problems, 0.7)
    assert engine.asked == [{"threshold": 0.7, "max_new_tokens": 80}]
    assert (found["exact"], found["count"], found["tpf"]) == (7 / 8, 8, (7 * 6 + 9) / (7 * 2 + 1))
    assert list(found["tasks"]) == sorted(tasks.TASKS) and found["seconds"] >= 0
    assert found["tasks"]["lists"] == {"exact": 1 / 2, "tpf": 15 / 3, "count": 2}
    assert found["tasks"]["json"] == {"exact": 1.0, "tpf": 3.0, "count": 2}


def test_every_threshold_is_evaluated_on_the_same_problems(tmp_path, monkeypatch, capsys):
    engines = {}

    def engine(folder):
        return engines.setdefault(Path(folder).name, Oracle(quick.sample(4)))

    monkeypatch.setattr(evaluate, "Engine", engine)
    evaluate.evaluate_all(tmp_path, tmp_path / "results", count=4)
    found = json.loads((tmp_path / "results" / "final.json").read_text())
    assert found["count"] == 4 and found["base"]["exact"] == 1.0
    assert [cell["threshold"] for cell in found["converted"]] == [None, *evaluate.THRESHOLDS]
    assert [params["threshold"] for params in engines["base"].asked] == [None]
    assert [params["threshold"] for params in engines["converted"].asked] == [None, *evaluate.THRESHOLDS]
    assert capsys.readouterr().out.count("exact 100.0  tpf 3.00  (arithmetic 100.0") == 11


def test_the_sample_is_held_out_and_of_its_seed():
    problems = quick.sample(40)
    assert problems == list(islice(tasks.problems(quick.HELD_OUT_SEED, held_out=True), 40))
    assert all(p.held_out for p in problems) and quick.sample(40, seed=7) != problems


def test_a_result_in_a_line():
    scores = {"json": {"exact": 0.5}, "lists": {"exact": 1.0}}
    line = quick.line({"exact": 0.875, "tpf": 2.345, "tasks": scores})
    assert line == "exact 87.5  tpf 2.35  (json 50.0  lists 100.0)" or line.startswith("exact 87.5  tpf 2.3")


def test_the_reporter_evaluates_without_training(monkeypatch, capsys):
    asked = []

    class Model:
        training = True

        def eval(self):
            self.training = False
            return self

        def train(self):
            self.training = True

    def accuracy(model, tokenizer, problems, how):
        asked.append((model.training, len(problems), how))
        return {"exact": 0.25, "tpf": 1.0, "tasks": {}}

    monkeypatch.setattr(quick, "accuracy", accuracy)
    model, how = Model(), quick.Decoding(8, 0.5)
    quick.reporter(None, how, count=12)(model, 30)
    assert asked == [(False, 12, how)] and model.training
    assert capsys.readouterr().out.startswith("  held-out at step 30: exact 25.0  tpf 1.00  ()")


@pytest.mark.parametrize("threshold", evaluate.THRESHOLDS)
def test_thresholds_are_confidences(threshold):
    assert 0 < threshold < 1
