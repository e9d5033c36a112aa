"""Which faults are planted into a module: operators of cosmic-ray, and one of our own."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

# Of the dozen replacements for an operator one or two say as much as all, for a fraction of the time.
NAMES = [
    *(f"ReplaceBinaryOperator_{pair}" for pair in (
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Add", "Pow_Mul", "LShift_RShift",
        "RShift_LShift", "BitOr_BitAnd", "BitAnd_BitOr")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in (
        "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt",
        "GtE_Lt", "Is_IsNot", "IsNot_Is")),
    "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "AddNot", "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator",
    "ZeroIterationForLoop",
]  # fmt: skip


class RemoveStatement(Operator):
    """A call, an assignment, a return or a raise that is not there: what cosmic-ray has no operator for."""

    kinds = ("expr_stmt", "atom_expr", "return_stmt", "raise_stmt", "keyword", "await_expr")

    def mutation_positions(self, node):
        if node.type == "simple_stmt" and node.children[0].type in self.kinds:
            inside = node.parent
            while inside is not None and inside.type not in ("funcdef", "classdef"):
                inside = inside.parent
            if inside is not None and inside.type == "funcdef" and node.children[0].get_code(False) != "pass":
                yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        prefix = node.get_first_leaf().prefix
        return parso.parse(f"{prefix}pass\n")

    @classmethod
    def examples(cls):
        return ()


@dataclass(frozen=True, slots=True)
class Fault:
    """A module with one fault. before, after: the lines that differ, without indentation."""

    source: str
    line: int
    before: str
    after: str


def faults_of(path: Path) -> list[Fault]:
    """Every fault of a module that compiles, in the order of their lines. Annotations are left as they are:
    nothing computes with them."""
    source = path.read_text()
    annotations = list(_annotations(source))
    found = {}
    for operator in [*(get_operator(f"core/{name}")() for name in NAMES), RemoveStatement()]:
        for occurrence, start in enumerate(_positions(source, operator)):
            if any(first <= start < last for first, last in annotations):
                continue
            mutated = mutate_code(source, operator, occurrence)
            if mutated != source and _compiles(mutated) and not _is_star_of_parameters(source, mutated):
                fault = _fault(source, mutated, start[0])
                if fault.before.replace("slots=True", "slots=False") != fault.after:  # a matter of memory
                    found.setdefault(mutated, fault)
    return sorted(found.values(), key=lambda fault: fault.line)


def _positions(source: str, operator: Operator) -> list[tuple[int, int]]:
    return [start for node in ast_nodes(get_ast(source)) for start, _ in operator.mutation_positions(node)]


def _is_star_of_parameters(source: str, mutated: str) -> bool:
    """cosmic-ray takes the `*` before parameters that must be named for a product."""
    return mutated.replace("/,", "*,") == source.replace("/,", "*,")


def _annotations(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            if (found := getattr(node, name, None)) is not None:
                yield (found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)


def _compiles(source: str) -> bool:
    try:
        compile(source, "", "exec")
    except SyntaxError:
        return False
    return True


def _fault(source: str, mutated: str, line: int) -> Fault:
    diff = list(difflib.ndiff(source.splitlines(), mutated.splitlines()))
    before, after = (
        " ".join(" ".join(text[2:] for text in diff if text.startswith(sign)).split()) for sign in "-+"
    )
    return Fault(mutated, line, before, after)
