"""One operation on a list of three to six distinct numbers below 100.

Distinct (template, operands): lists alone 100·99·98 + … + 100·99·98·97·96·95 = 8·10¹¹, for each operation.
"""

from __future__ import annotations

import random


def running_sum(xs: list[int]) -> str:
    lines, total = [], xs[0]
    for x in xs[1:]:
        lines.append(f"{total} + {x} = {total + x}")
        total += x
    return "\n".join([*lines, f"The sum is {total}."])


def kept(xs: list[int], keep: str, name) -> str:
    """Every number with its name, then those that are called `keep`."""
    names = ", ".join(f"{x} {name(x)}" for x in xs)
    return f"{names}\nThe result is {[x for x in xs if name(x) == keep]}."


def parity(x: int) -> str:
    return "odd" if x % 2 else "even"


def side(k: int):
    return lambda x: "greater" if x > k else "less"


OPERATIONS = {
    "Sort {xs} in ascending order.": lambda xs, k: sorted(xs),
    "Sort {xs} in descending order.": lambda xs, k: sorted(xs, reverse=True),
    "Reverse the list {xs}.": lambda xs, k: xs[::-1],
    "Keep the even numbers of {xs}.": lambda xs, k: kept(xs, "even", parity),
    "Keep the odd numbers of {xs}.": lambda xs, k: kept(xs, "odd", parity),
    "Keep the numbers of {xs} greater than {k}.": lambda xs, k: kept(xs, "greater", side(k)),
    "Keep the numbers of {xs} less than {k}.": lambda xs, k: kept(xs, "less", side(k)),
    "Give the first and the last number of {xs}.": lambda xs, k: [xs[0], xs[-1]],
    "Find the largest number of {xs}.": lambda xs, k: max(xs),
    "Find the smallest number of {xs}.": lambda xs, k: min(xs),
    "Add up the numbers of {xs}.": lambda xs, k: running_sum(xs),
}


def draw(rng: random.Random):
    """(template, operands, message, completion, checks) of a random list operation."""
    text = rng.choice(tuple(OPERATIONS))
    *xs, k = rng.sample(range(100), rng.randint(4, 7))
    operands = (tuple(xs), k) if "{k}" in text else (tuple(xs),)
    result = OPERATIONS[text](xs, k)
    answer = result if isinstance(result, str) else f"The result is {result}."
    return text, operands, text.format(xs=xs, k=k), answer, ()
