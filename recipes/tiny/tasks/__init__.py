"""Problems with exact scores: arithmetic, Python functions, JSON extraction, list operations.

An instance is (task, template, operands, surface). Template and operands decide the answer's content; the
surface holds what merely dresses it (names of people, things, functions). The split is a hash of (task,
template, operands): whatever its surface, a problem is held out or it is not, so no held-out problem shares
template and operands with a training one.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tasks import arithmetic, extraction, functions, lists
from tasks.sandbox import run_function

HELD_OUT_ONE_IN = 16
TASKS = {"arithmetic": arithmetic, "python": functions, "json": extraction, "lists": lists}
# Shares in training follow difficulty: a model of this size masters the Python functions first.
TRAINING_MIX = ("arithmetic", "lists") * 3 + ("json", "python")


@dataclass(frozen=True)
class Problem:
    """One question with its expected answer.

    `prompt` is what the model is given and `completion` what it should write before the end-of-text token;
    `checks` is what the scorer needs besides the completion (for Python: argument lists and the values to
    return).
    """

    task: str
    template: str
    operands: tuple
    message: str
    completion: str
    checks: tuple = ()

    @property
    def prompt(self) -> str:
        return prompt_of(self.message)

    @property
    def held_out(self) -> bool:
        key = repr((self.task, self.template, self.operands)).encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % HELD_OUT_ONE_IN == 0


def prompt_of(message: str) -> str:
    """The prompt format, the same as the tokenizer's chat template: one user message, then the answer's
    cue."""
    return f"Q: {message}\nA: "


def draw(rng: random.Random, task: str) -> Problem:
    return Problem(task, *TASKS[task].draw(rng))


def problems(seed: int, held_out: bool, order: tuple[str, ...] = tuple(TASKS)) -> Iterator[Problem]:
    """An endless stream of problems of one side of the split, tasks in the given order over and over."""
    rng = random.Random(f"{seed}/{held_out}")
    while True:
        for task in order:
            problem = draw(rng, task)
            while problem.held_out is not held_out:
                problem = draw(rng, task)
            yield problem


def score(problem: Problem, completion: str) -> bool:
    """True when the completion is an exact answer.

    Arithmetic and lists: the text, working included, equals the expected one. JSON: it parses to an equal
    value. Python: the function, by its name, run in a subprocess with limits, returns the expected values.
    """
    if problem.task == "json":
        try:
            return json.loads(completion) == json.loads(problem.completion)
        except json.JSONDecodeError:
            return False
    if problem.task == "python":
        name = problem.message.removeprefix("def ").split("(")[0]
        return run_function(completion, name, problem.checks)
    return completion.strip() == problem.completion
