"""Which statements run where some conditions are known: `guarded` leaves out the branches that the facts rule out."""

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Guarded = tuple[ast.AST, tuple[str, ...]]
"""A node, and the conditions around it, outermost first."""

_END = ast.Return | ast.Raise | ast.Continue | ast.Break


@dataclass(frozen=True, slots=True)
class Facts:
    """Conditions that are known: regular expressions for whole expressions, as `ast.unparse` writes them."""

    true: re.Pattern[str]
    false: re.Pattern[str]

    def of(self, test: ast.expr) -> bool | None:
        """Whether a condition holds; None if that is not known."""
        match test:
            case ast.Constant(value=value):
                return bool(value)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.of(operand)
                return None if inner is None else not inner
            case ast.BoolOp(op=op, values=values):
                decides = isinstance(op, ast.Or)
                found = [self.of(value) for value in values]
                if decides in found:
                    return decides
                return None if None in found else not decides
        said = ast.unparse(test)
        if self.false.fullmatch(said):
            return False
        return True if self.true.fullmatch(said) else None


def guarded(body: Sequence[ast.stmt], facts: Facts, *, into_functions: bool = True) -> list[Guarded]:
    """Every node of the statements that can run. Classes and, unless `into_functions`, functions are not entered."""
    walk = _Walk(facts, into_functions)
    walk.statements(body, ())
    return walk.found


class _Walk:
    """Collects the nodes that can run."""

    def __init__(self, facts: Facts, into_functions: bool) -> None:
        self.facts, self.into_functions = facts, into_functions
        self.found: list[Guarded] = []

    def statements(self, body: Iterable[ast.stmt], tests: tuple[str, ...]) -> None:
        for statement in body:
            self.found.append((statement, tests))
            if self._ends(statement, tests):
                return

    def _ends(self, statement: ast.stmt, tests: tuple[str, ...]) -> bool:
        """Take in a statement; whether nothing after it runs."""
        match statement:
            case ast.If(test=test, body=then, orelse=orelse):
                return self._branches(test, then, orelse, tests)
            case ast.Try(body=tried, handlers=handlers, orelse=orelse, finalbody=final):
                for part in (tried, orelse, final):
                    self.statements(part, tests)
                for handler in handlers:
                    caught = ast.unparse(handler.type) if handler.type else "Exception"
                    self.statements(handler.body, (*tests, f"except {caught}"))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if self.into_functions:
                    self.expressions(statement.decorator_list, tests)
                    self.statements(statement.body, tests)
            case ast.ClassDef():
                pass
            case ast.Match(subject=subject, cases=cases):
                self.expressions([subject], tests)
                for case in cases:
                    said = f"{ast.unparse(subject)} is {ast.unparse(case.pattern)}"
                    self.statements(case.body, (*tests, said))
            case ast.For() | ast.AsyncFor() | ast.While() | ast.With() | ast.AsyncWith():
                parts = ast.iter_child_nodes(statement)
                self.expressions((part for part in parts if not isinstance(part, ast.stmt)), tests)
                self.statements(statement.body, tests)
                self.statements(getattr(statement, "orelse", ()), tests)
            case _:
                self.expressions(ast.iter_child_nodes(statement), tests)
        return isinstance(statement, _END)

    def _branches(self, test: ast.expr, then: list[ast.stmt], orelse: list[ast.stmt], tests: tuple[str, ...]) -> bool:
        self.expressions([test], tests)
        known, said = self.facts.of(test), ast.unparse(test)
        if known is not False:
            self.statements(then, (*tests, said))
        if known is not True:
            self.statements(orelse, (*tests, f"not ({said})"))
        taken = then if known is True else orelse if known is False else ()
        return bool(taken) and isinstance(list(taken)[-1], _END)

    def expressions(self, nodes: Iterable[ast.AST], tests: tuple[str, ...]) -> None:
        """Every node of expressions, but for the branches of conditional ones that the facts rule out."""
        for node in nodes:
            self.found.append((node, tests))
            if isinstance(node, ast.IfExp):
                known = self.facts.of(node.test)
                parts = [node.test, *([node.body] if known is not False else ())]
                self.expressions([*parts, *([node.orelse] if known is not True else ())], tests)
            elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
                for value in node.values:
                    self.expressions([value], tests)
                    if self.facts.of(value) is False:
                        break
            else:
                self.expressions(ast.iter_child_nodes(node), tests)
