"""Exact accuracy and tokens per forward on the held-out split, by the engine."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import tasks
from quick import line, sample
from results import write_json

from edlm_engine import Engine

COUNT = 1000
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
MAX_NEW_TOKENS = 80


def engine_accuracy(engine: Engine, problems: list[tasks.Problem], threshold: float | None) -> dict:
    """{"exact", "tpf", "count", "seconds", "tasks"}; tpf is generated tokens over denoising forwards,
    prompts apart."""
    start = time.perf_counter()
    outputs = engine.generate(
        [p.prompt for p in problems], threshold=threshold, max_new_tokens=MAX_NEW_TOKENS
    )
    seconds = time.perf_counter() - start
    tally = defaultdict(lambda: [0, 0, 0, 0])
    for problem, output in zip(problems, outputs, strict=True):
        result = (1, int(tasks.score(problem, output.text)), len(output.token_ids), output.nfe)
        for name in (problem.task, "all"):
            tally[name] = [a + b for a, b in zip(tally[name], result, strict=True)]
    scores = {
        name: {"exact": right / count, "tpf": tokens / nfe, "count": count}
        for name, (count, right, tokens, nfe) in tally.items()
    }
    return {**scores.pop("all"), "seconds": seconds, "tasks": dict(sorted(scores.items()))}


def evaluate_all(work: Path, results: Path, count: int = COUNT) -> None:
    """results/final.json: the AR base, then the converted model at one token per forward and at each
    threshold."""
    problems = sample(count)
    found = {
        "count": count,
        "base": engine_accuracy(Engine(str(work / "base")), problems, None),
        "converted": [],
    }
    print("base:", line(found["base"]), flush=True)
    engine = Engine(str(work / "converted"))
    for threshold in (None, *THRESHOLDS):
        result = engine_accuracy(engine, problems, threshold)
        found["converted"].append({"threshold": threshold, **result})
        print(f"converted, threshold {threshold}:", line(result), flush=True)
        write_json(results / "final.json", found)
