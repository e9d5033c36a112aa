"""Word problems of three steps, one operation to a line, every number below 1000.

Distinct (template, operands), lower bounds: reading 90³·600 > 4·10⁸; boxes, sharing, saving and seats more
than 10⁵ each.
"""

from __future__ import annotations

import random

from tasks.words import FIRST_NAMES, PLURALS

RESULT = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a // b}


def boxes(rng):
    a, b, c = rng.randint(10, 99), rng.randint(2, 9), rng.randint(2, 20)
    d = rng.randint(2, 99)
    text = "{n} has {a} {o} and buys {b} boxes of {c} {o}. {m} takes {d} of them. How many {o} are left?"
    return text, (a, b, c, min(d, a + b * c)), [(b, "*", c), (a, "+", b * c)], (3, "-")


def sharing(rng):
    a, b, c, d = rng.randint(2, 20), rng.randint(2, 9), rng.randint(10, 99), rng.randint(2, 99)
    text = "{b} friends share {total} {o} equally. {n} then finds {c} more and gives {d} away. "
    text += "How many {o} has {n} now?"
    return text, (a, b, c, min(d, a + c)), [(a * b, "/", b), (a, "+", c)], (3, "-")


def saving(rng):
    a, b, c, d = rng.randint(2, 20), rng.randint(2, 9), rng.randint(2, 99), rng.randint(10, 99)
    text = "{n} saves {a} coins a week for {b} weeks, gets {d} coins from {m} and spends {c}. "
    text += "How many coins are left?"
    return text, (a, b, min(c, a * b + d), d), [(a, "*", b), (a * b, "+", d)], (2, "-")


def reading(rng):
    a, b, c, d = (*(rng.randint(10, 99) for _ in range(3)), rng.randint(300, 899))
    text = "{n} reads {a} pages on Monday, {b} on Tuesday and {c} on Sunday. The book has {d} pages. "
    text += "How many are left?"
    return text, (a, b, c, d), [(a, "+", b), (a + b, "+", c), (d, "-", a + b + c)], None


def seats(rng):
    a, b, c, d = rng.randint(2, 9), rng.randint(2, 20), rng.randint(10, 99), rng.randint(2, 99)
    text = "A hall has {a} rows of {b} seats and {c} seats on the balcony. {d} people come. "
    text += "How many seats stay empty?"
    return text, (a, b, c, min(d, a * b + c)), [(a, "*", b), (a * b, "+", c)], (3, "-")


TEMPLATES = (boxes, sharing, saving, reading, seats)


def draw(rng: random.Random):
    """(template, operands, message, completion, checks) of a random word problem."""
    template = rng.choice(TEMPLATES)
    text, operands, steps, last = template(rng)
    if last:  # the last step takes an operand away from the running result
        steps.append((RESULT[steps[-1][1]](steps[-1][0], steps[-1][2]), last[1], operands[last[0]]))
    n, m = rng.sample(FIRST_NAMES, 2)
    values = dict(zip("abcd", operands, strict=True), total=operands[0] * operands[1])
    message = text.format(n=n, m=m, o=rng.choice(PLURALS), **values)
    lines = [f"{x} {op} {y} = {RESULT[op](x, y)}" for x, op, y in steps]
    answer = lines[-1].rsplit(" ", 1)[1]
    return template.__name__, operands, message, "\n".join([*lines, f"The answer is {answer}."]), ()
