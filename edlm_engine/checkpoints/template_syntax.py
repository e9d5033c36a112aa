"""Syntax of chat templates: a tag that transformers adds, and calls that make a template pay."""

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.visitor import NodeTransformer

from .template_costs import LONG


class Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for training; here its body is just written."""

    tags = frozenset(("generation",))

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Metering(NodeTransformer):
    """Makes a template's syntax tree call its environment where Jinja's own hooks do not reach."""

    def generic_visit(self, node, *args, **kwargs):
        super().generic_visit(node, *args, **kwargs)
        for field in ("body", "else_"):
            statements = getattr(node, field, None)
            if isinstance(statements, list) and (statements or field == "body"):
                payment = _hook("spend", nodes.Const(_cost(statements)), lineno=node.lineno)
                statements.insert(0, nodes.ExprStmt(payment, lineno=node.lineno))
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        for holder in (node, *node.ops):
            if not isinstance(holder.expr, nodes.Const):
                holder.expr = _hook("value", holder.expr)
        return node

    def visit_Pair(self, node):
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _hook("value", node.key)
        return node

    def visit_Concat(self, node):
        self.generic_visit(node)
        return _hook("concat", *node.nodes, lineno=node.lineno)

    def visit_Getitem(self, node):
        self.generic_visit(node)
        return _hook("slice", node) if isinstance(node.arg, nodes.Slice) else node


def _hook(name: str, *arguments: nodes.Expr, lineno: int | None = None) -> nodes.Call:
    function = nodes.EnvironmentAttribute(f"metered_{name}")
    call = nodes.Call(function, list(arguments), [], None, None)
    return call.set_lineno(lineno or arguments[0].lineno or 1)


def _cost(statements: list[nodes.Node]) -> int:
    """Characters of text and of constants that a statement list can build when it runs once, without the
    statement lists inside of it."""
    cost, left = 4 * LONG, list(statements)
    while left:
        node = left.pop()
        cost += LONG + (len(node.data) if isinstance(node, nodes.TemplateData) else 0)
        left.extend(node.iter_child_nodes(exclude=("body", "else_")))
    return cost
