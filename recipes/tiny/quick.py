"""Accuracy of a model in training on a small held-out sample, decoded by generate.py."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import islice

import tasks
from generate import Decoding, generate
from tokenizers import Tokenizer

from edlm_engine.convert.model import Decoder

HELD_OUT_SEED = 1_000_003


def sample(count: int, seed: int = HELD_OUT_SEED) -> list[tasks.Problem]:
    return list(islice(tasks.problems(seed, held_out=True), count))


def accuracy(
    model: Decoder, tokenizer: Tokenizer, problems: list[tasks.Problem], how: Decoding, batch: int = 64
) -> dict:
    """{"exact": share, "tpf": generated tokens / forwards, "count": n, "tasks": {task: {…}}}."""
    eos, mask = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|mask|>")
    order = sorted(problems, key=lambda p: (len(p.completion), p.prompt))
    tally = defaultdict(lambda: [0, 0, 0, 0])
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        prompts = [tokenizer.encode(problem.prompt).ids for problem in part]
        outputs, forwards = generate(model, prompts, mask, eos, how)
        for problem, output, count in zip(part, outputs, forwards, strict=True):
            text = tokenizer.decode([token for token in output if token != eos])
            result = (1, int(tasks.score(problem, text)), len(output), count)
            for name in (problem.task, "all"):
                tally[name] = [a + b for a, b in zip(tally[name], result, strict=True)]
    scores = {
        name: {"exact": right / count, "tpf": tokens / nfe, "count": count}
        for name, (count, right, tokens, nfe) in tally.items()
    }
    return {**scores.pop("all"), "tasks": dict(sorted(scores.items()))}


def line(result: dict) -> str:
    parts = "  ".join(f"{task} {100 * score['exact']:.1f}" for task, score in result["tasks"].items())
    return f"exact {100 * result['exact']:.1f}  tpf {result['tpf']:.2f}  ({parts})"


def reporter(tokenizer: Tokenizer, how: Decoding, count: int = 96):
    """A training callback (model, step) that prints the accuracy on `count` held-out problems."""
    problems = sample(count)

    def report(model: Decoder, step: int) -> None:
        start = time.perf_counter()
        result = accuracy(model.eval(), tokenizer, problems, how)
        model.train()
        print(f"  held-out at step {step}: {line(result)}  [{time.perf_counter() - start:.0f} s]", flush=True)

    return report
