"""`said_in`: the messages of a function, with {} for values and the condition that the engine itself puts on each."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from engine_messages.conditions import Guarded

_MOST = 200
"""Characters of a condition or a bare assertion that are kept."""

_NO_MESSAGES = ("StopIteration", "StopAsyncIteration", "KeyboardInterrupt", "SystemExit", "Exit")

_CLASS = re.compile(r"[A-Z]\w*(?:Error|Exception)")
"""Classes of exceptions. `raise make_error(...)` says what `make_error` returns."""

_WORD = re.compile(r"[A-Za-z]{4,}")

_CONVERSION = re.compile(r"%[-#0-9.]*[sdrifx]")


@dataclass(frozen=True, slots=True)
class Said:
    """A message.

    Attributes:
        file: Path in the wheel.
        line: Line of the statement.
        function: Qualified name.
        error: Class of the exception; "log" for an error in the log.
        text: The text, with {} for values, and doubled braces; the source of a bare assertion.
        condition: When the engine says it: the innermost condition, or what is asserted.
    """

    file: str
    line: int
    function: str
    error: str
    text: str
    condition: str


def said_in(path: str, function: str, nodes: Iterable[Guarded]) -> Iterator[Said]:
    """The messages of a function's nodes."""
    nodes = list(nodes)
    texts = _texts(node for node, _ in nodes)
    for node, tests in nodes:
        found = _message(node, texts)
        if found is not None:
            error, text, condition = found
            said = (condition or (tests[-1] if tests else ""))[:_MOST]
            yield Said(path, getattr(node, "lineno", 0), function, error, text, said)


def is_message(node: ast.AST) -> bool:
    """Whether a node is a `raise`, an `assert` or an error in the log."""
    return _message(node, {}) is not None


def _message(node: ast.AST, texts: dict[str, str]) -> tuple[str, str, str] | None:
    """Class, text and own condition of a message."""
    match node:
        case ast.Raise(exc=ast.Call(func=func, args=args)) | ast.Return(value=ast.Call(func=func, args=args)):
            error = ast.unparse(func).rpartition(".")[2]
            if error in _NO_MESSAGES or not _CLASS.fullmatch(error):
                return None
            return error, _named(args[0], texts) if args else "", ""
        case ast.Raise(exc=ast.Name(id=name)) if name.endswith(("Error", "Exception")):
            return name, "", ""
        case ast.Assert(test=test, msg=None):
            said = f"assert {ast.unparse(test)}"[:_MOST].replace("{", "{{").replace("}", "}}")
            return "AssertionError", said, ast.unparse(test)
        case ast.Assert(test=test, msg=msg) if msg is not None:
            return "AssertionError", _named(msg, texts), ast.unparse(test)
        case ast.Call(func=ast.Attribute(attr="error" | "critical" | "exception", value=value), args=[first, *_]):
            said = _CONVERSION.sub("{}", _named(first, texts))
            if "log" in ast.unparse(value).lower() and _WORD.search(said):
                return "log", said, ""
    return None


def _texts(nodes: Iterator[ast.AST]) -> dict[str, str]:
    """The texts that a function gives names to, as they are first."""
    found: dict[str, str] = {}
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                text = text_of(value)
                if text != "{}":
                    found.setdefault(name, text)
    return found


def _named(node: ast.expr, texts: dict[str, str]) -> str:
    return texts.get(node.id, "{}") if isinstance(node, ast.Name) else text_of(node)


def text_of(node: ast.expr) -> str:
    """The text of an expression, with {} for values."""
    match node:
        case ast.Constant(value=str() as value):
            return value.replace("{", "{{").replace("}", "}}")
        case ast.JoinedStr(values=values):
            return "".join(text_of(value) if isinstance(value, ast.Constant) else "{}" for value in values)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return text_of(left) + text_of(right)
        case ast.BinOp(op=ast.Mod(), left=left):
            return _CONVERSION.sub("{}", text_of(left))
        case ast.Call(func=ast.Attribute(attr="format", value=value)):
            return re.sub(r"\{\{[^{}]*\}\}", "{}", text_of(value))
        case ast.Tuple(elts=[first, *_]):  # assert condition, ("text", value)
            return text_of(first)
        case _:
            return "{}"
