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


OPERATIONS = {
    "Sort {xs} in ascending order.": lambda xs, k: sorted(xs),
    "Sort {xs} in descending order.": lambda xs, k: sorted(xs, reverse=True),
    "Reverse the list {xs}.": lambda xs, k: xs[::-1],
    "Keep the even numbers of {xs}.": lambda xs, k: [x for x in xs if x % 2 == 0],
    "Keep the odd numbers of {xs}.": lambda xs, k: [x for x in xs if x % 2],
    "Keep the numbers of {xs} greater than {k}.": lambda xs, k: [x for x in xs if x > k],
    "Keep the numbers of {xs} less than {k}.": lambda xs, k: [x for x in xs if x < k],
    "Add {k} to each number of {xs}.": lambda xs, k: [x + k for x in xs],
    "Give the first and the last number of {xs}.": lambda xs, k: [xs[0], xs[-1]],
    "Find the largest number of {xs}.": lambda xs, k: max(xs),
    "Find the smallest number of {xs}.": lambda xs, k: min(xs),
    "Add up the numbers of {xs}.": lambda xs, k: running_sum(xs),
}


def draw(rng: random.Random):
    """(template, operands, message, completion, checks) of a random list operation."""
    text = rng.choice(tuple(OPERATIONS))
    xs = rng.sample(range(100), rng.randint(3, 6))
    k = rng.randint(2, 9) if text.startswith("Add {k}") else rng.randint(10, 89)
    operands = (tuple(xs), k) if "{k}" in text else (tuple(xs),)
    result = OPERATIONS[text](xs, k)
    answer = result if isinstance(result, str) else f"The result is {result}."
    return text, operands, text.format(xs=xs, k=k), answer, ()
