"""Small Python functions from a signature and a docstring, scored by running them.

Distinct (template, operands), exact, constants in 2..99: chain 5³·98³ = 118 million; branch 4·3·3·98³ = 34
million; select 4·3·98² = 115 thousand; total 4·3·98² = 115
thousand.
"""

from __future__ import annotations

import random

from tasks.words import FUNCTIONS

CHANGES = {
    "add {}": "+",
    "subtract {}": "-",
    "multiply by {}": "*",
    "divide by {} rounding down": "//",
    "take the remainder modulo {}": "%",
}
BRANCHES = {"plus {}": "+", "minus {}": "-", "times {}": "*"}
COMPARISONS = {"greater than": ">", "less than": "<", "at least": ">=", "at most": "<="}
EACH = {"increased by {}": "+", "decreased by {}": "-", "multiplied by {}": "*"}


def chain(rng, k):
    words = [rng.choice(tuple(CHANGES)) for _ in range(3)]
    doc = "{}, {}, then {}.".format(*(word.format(c) for word, c in zip(words, k, strict=True)))
    signs = [CHANGES[word] for word in words]
    lines = [f"x = x {sign} {c}" for sign, c in zip(signs[:2], k, strict=False)]
    return "x", signs, k, "Take x, " + doc, [*lines, f"return x {signs[2]} {k[2]}"]


def branch(rng, k):
    comparison, yes, no = rng.choice(tuple(COMPARISONS)), *(rng.choice(tuple(BRANCHES)) for _ in range(2))
    doc = f"If x is {comparison} {k[0]}, return x {yes.format(k[1])}, otherwise x {no.format(k[2])}."
    signs = [COMPARISONS[comparison], BRANCHES[yes], BRANCHES[no]]
    lines = [f"if x {signs[0]} {k[0]}:", f"    return x {signs[1]} {k[1]}", f"return x {signs[2]} {k[2]}"]
    return "x", signs, k, doc, lines


def select(rng, k):
    comparison, each = rng.choice(tuple(COMPARISONS)), rng.choice(tuple(EACH))
    doc = f"Return the items of xs {comparison} {k[0]}, each {each.format(k[1])}."
    signs = [COMPARISONS[comparison], EACH[each]]
    line = f"return [x {signs[1]} {k[1]} for x in xs if x {signs[0]} {k[0]}]"
    return "xs", signs, k[:2], doc, [line]


def total(rng, k):
    comparison, word = rng.choice(tuple(COMPARISONS)), rng.choice(("sum", "number", "largest"))
    sign = COMPARISONS[comparison]
    doc = f"Return the {word} of the items of xs {comparison} {k[0]}, plus {k[1]}."
    kept = f"[x for x in xs if x {sign} {k[0]}]"
    call = {"sum": f"sum({kept})", "number": f"len({kept})", "largest": f"max({kept}, default=0)"}[word]
    return "xs", [sign, word], k[:2], doc, [f"return {call} + {k[1]}"]


def expected(code: str, name: str, inputs: list) -> tuple:
    """((argument, value), …) of the reference solution; it is generated above, so it is run right here."""
    scope: dict = {}
    exec(code, scope)
    return tuple((argument, scope[name](argument)) for argument in inputs)


def draw(rng: random.Random):
    """(template, operands, message, completion, checks); checks are (argument, value) pairs."""
    kind = rng.choice((chain, branch, select, total))
    constants = tuple(rng.randint(2, 99) for _ in range(3))
    argument, signs, operands, doc, lines = kind(rng, constants)
    name = rng.choice(FUNCTIONS)
    head = f"def {name}({argument}):"
    code = "\n    ".join([head, *lines])
    near = sorted({0, 1, -7, 100, 12345, *(c + d for c in operands for d in (-1, 0, 1))})
    inputs = near if argument == "x" else [near, near[::-1], near[:3], []]
    template = " ".join([kind.__name__, *signs])
    return template, operands, f'{head}\n    """{doc}"""', code, expected(code, name, inputs)
