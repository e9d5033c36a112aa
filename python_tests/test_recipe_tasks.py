"""The tiny recipe's problems: determinism, the held-out split, and scorers that accept right and reject
wrong."""

import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))

import tasks
from tasks.sandbox import run_function


def take(count, seed=0, held_out=False, order=tuple(tasks.TASKS)):
    return list(islice(tasks.problems(seed, held_out, order), count))


def keys(problems):
    return {(problem.task, problem.template, problem.operands) for problem in problems}


def test_same_seed_same_problems_and_other_seed_others():
    assert take(200) == take(200)
    assert take(200) != take(200, seed=1)
    assert take(200) != take(200, held_out=True)


def test_held_out_problems_share_no_template_with_operands_with_training_ones():
    training, held_out = keys(take(20_000)), keys(take(4_000, held_out=True))
    assert len(training) > 19_000 and len(held_out) > 3_800
    assert not training & held_out


def test_the_split_ignores_surface_words():
    problem = take(1, held_out=True, order=("arithmetic",))[0]
    assert problem.held_out and replace(problem, message="other names", completion="").held_out
    assert any(not replace(problem, operands=(*problem.operands[:3], extra)).held_out for extra in range(40))


@pytest.mark.parametrize(
    ("task", "template"),
    [("arithmetic", "reading"), ("python", "chain"), ("json", "order"), ("lists", "Sort")],
)
def test_every_task_has_over_a_million_distinct_problems(task, template):
    """n draws from s equally likely problems repeat about n²/2s times; here one template alone is large
    enough."""
    drawn = [problem for problem in take(30_000, order=(task,)) if problem.template.startswith(template)]
    repeats = len(drawn) - len(keys(drawn))
    assert len(drawn) > 3_000 and repeats < len(drawn) ** 2 / 2e6 / 2


def test_templates_and_shares():
    assert {problem.task for problem in take(4)} == set(tasks.TASKS)
    mixed = take(80, order=tasks.TRAINING_MIX)
    shares = {task: sum(problem.task == task for problem in mixed) for task in tasks.TASKS}
    assert shares == {"arithmetic": 30, "lists": 30, "json": 10, "python": 10}


@pytest.mark.parametrize("task", tasks.TASKS)
def test_expected_answers_score_and_broken_ones_do_not(task):
    for problem in take(12, order=(task,)):
        assert tasks.score(problem, problem.completion)
        assert not tasks.score(problem, problem.completion[:-1])
        assert not tasks.score(problem, "")
        digit = next((c for c in problem.completion if c.isdigit()), None)
        if digit:
            at = problem.completion.rindex(max(c for c in problem.completion if c.isdigit()))
            changed = str((int(problem.completion[at]) + 3) % 10)
            assert not tasks.score(problem, problem.completion[:at] + changed + problem.completion[at + 1 :])


def test_arithmetic_is_right():
    for problem in take(60, order=("arithmetic",)):
        *steps, last = problem.completion.split("\n")
        for step in steps:
            left, right = step.replace("/", "//").split(" = ")
            assert eval(left) == int(right) and 0 <= int(right) < 1000
        assert last == f"The answer is {right}."


def test_json_is_compared_as_a_value():
    problem = take(1, order=("json",))[0]
    assert tasks.score(problem, problem.completion.replace(", ", " ,\n"))
    assert not tasks.score(problem, problem.completion + "}")


def test_python_is_scored_by_what_it_computes():
    checks = ((1, 5), (2, 7), (-3, -3))
    assert run_function("def f(n):\n    return 2 * n + 3", "f", checks)
    assert run_function("def f(a):\n    a = a + a\n    return a + 3", "f", checks)
    assert not run_function("def g(n):\n    return 2 * n + 3", "f", checks)
    assert not run_function("def f(n):\n    return 2 * n + 4", "f", checks)
    assert not run_function("def f(n):\n    return 2 * n +", "f", checks)
    assert not run_function("def f(n):\n    return undefined", "f", checks)


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "return [0] * 10 ** 10",
        "raise SystemExit",
        "import os; os._exit(0)",
        "return f(x)",
        "open('/tmp/edlm_sandbox_probe', 'w').write('x'); return x",
        "print('[[1]]'); raise SystemExit",
    ],
)
def test_hostile_code_fails_within_its_limits(body):
    start = time.monotonic()
    assert not run_function(f"def f(x):\n    {body}", "f", ((1, 1),))
    assert time.monotonic() - start < 15
