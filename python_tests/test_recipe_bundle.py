"""What the recipe puts into the package: files, examples, model cards."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))

import bundle
import quick

from edlm_engine.checkpoints.folder import ASSETS


@pytest.fixture
def assets(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "ASSETS", tmp_path / "assets")
    return tmp_path / "assets"


def test_files_are_copied_up_to_a_size(assets, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name in (*bundle.FILES, "resume.pt"):
        (source / name).write_text(name)
    bundle.copy(source, "edlm-tiny")
    assert sorted(p.name for p in (assets / "edlm-tiny").iterdir()) == sorted(bundle.FILES)
    assert all((assets / "edlm-tiny" / name).read_text() == name for name in bundle.FILES)
    monkeypatch.setattr(bundle, "LIMIT", len("model.safetensors") + 1)
    bundle.copy(source, "fits")
    monkeypatch.setattr(bundle, "LIMIT", len("model.safetensors"))
    with pytest.raises(ValueError, match=r"model\.safetensors has 17 bytes, over the limit of 17"):
        bundle.copy(source, "too large")
    assert not (assets / "too large").exists()


@pytest.fixture
def decoded(monkeypatch):
    """The bundled tokenizer and config with answers instead of a model; returns how it was asked."""
    problems = {problem.prompt: problem.completion for problem in quick.sample(64, bundle.EXAMPLES_SEED)}
    asked = {}

    class Model:
        def eval(self):
            asked["eval"] = True
            return self

    config = {"block_size": 8, "mask_token_id": 1, "eos_token_id": 0}
    monkeypatch.setattr(bundle, "load_decoder", lambda folder: (Model(), config))

    def generate(model, prompts, mask, eos, how):
        tokenizer = bundle.Tokenizer.from_file(str(ASSETS / "edlm-tiny" / "tokenizer.json"))
        asked.update(mask=mask, eos=eos, how=how)
        answers = [problems[tokenizer.decode(prompt)] for prompt in prompts]
        asked["wrong"] = longest = max(answers, key=len)
        texts = ["?" if answer == longest else answer for answer in answers]
        return [[*tokenizer.encode(text).ids, eos] for text in texts], [1] * len(texts)

    monkeypatch.setattr(bundle, "generate", generate)
    return asked


def test_examples_are_the_longest_right_answers_of_every_task(decoded):
    found = bundle.examples(ASSETS / "edlm-tiny", each=2)
    problems = quick.sample(64, bundle.EXAMPLES_SEED)
    assert decoded["eval"] and (decoded["mask"], decoded["eos"]) == (1, 0)
    assert (decoded["how"].block, decoded["how"].threshold) == (8, 0.9)
    for task in {problem.task for problem in problems}:
        right = [p for p in problems if p.task == task and p.completion != decoded["wrong"]]
        longest = sorted((len(p.completion) for p in right), reverse=True)[:2]
        chosen = [example for example in found if example["task"] == task]
        assert [len(example["text"]) for example in chosen] == longest
        by_prompt = {p.prompt: p for p in right}
        for example in chosen:
            problem = by_prompt[example["prompt"]]
            assert (example["message"], example["text"]) == (problem.message, problem.completion)
    assert len(found) == 2 * len({problem.task for problem in problems})


def result(exact, tpf, **more):
    tasks = {"json": {"exact": exact / 2, "tpf": tpf}, "lists": {"exact": exact, "tpf": tpf}}
    return {"exact": exact, "tpf": tpf, "tasks": tasks, **more}


FINAL = {
    "count": 400,
    "base": result(0.9, 1.0),
    "converted": [result(0.8, 0.951, threshold=None), result(0.6, 9.5, threshold=0.8),
                  result(0.7, 4.256, threshold=0.9)],
}  # fmt: skip


def test_the_score_table_is_in_percent():
    assert bundle.score_table(FINAL).splitlines() == [
        "| | TPF | all | json | lists |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| AR base | 1.00 | 90.0 | 45.0 | 90.0 |",
        "| one token per forward | 0.95 | 80.0 | 40.0 | 80.0 |",
        "| threshold 0.9 | 4.26 | 70.0 | 35.0 | 70.0 |",
    ]


def test_the_bundle_has_both_models_with_examples_and_cards(assets, tmp_path, monkeypatch):
    for source, name in (("converted", "edlm-tiny"), ("base", "edlm-tiny-ar")):
        folder = tmp_path / "work" / source
        folder.mkdir(parents=True)
        for file in bundle.FILES:
            (folder / file).write_bytes((ASSETS / name / file).read_bytes())
    chosen = [{"task": "json", "prompt": "Q", "message": "q", "text": "a"}]
    monkeypatch.setattr(bundle, "examples", lambda folder: chosen if folder.name == "converted" else None)
    bundle.bundle(tmp_path / "work", tmp_path / "results")
    assert "TPF" not in (assets / "edlm-tiny" / "README.md").read_text()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "final.json").write_text(json.dumps(FINAL))
    bundle.bundle(tmp_path / "work", tmp_path / "results")
    for name, start in (("edlm-tiny", "A block-diffusion language model (block length 16)"),
                        ("edlm-tiny-ar", "The autoregressive")):  # fmt: skip
        assert json.loads((assets / name / "examples.json").read_text()) == chosen
        card = (assets / name / "README.md").read_text()
        assert card.startswith(f"# {name}\n\n{start}") and bundle.score_table(FINAL) in card
        assert "4 layers, hidden size 256, 4 query and 2 key/value" in card and "2,951,936 parameters" in card
        assert "on 400 held-out problems (standard error of the base's total 1.5 points)" in card.replace(
            "\n", " "
        )
