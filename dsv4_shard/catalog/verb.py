"""A verb is a function whose keywords are the fields of a dataclass of options.

The decorated function gets its input or output places, and the options as one checked object. Callers see keywords: in
the signature, in the docstring, and in type checkers. Errors are those of `dsv4_shard.errors`; their hints are notes in
the traceback, with the parameter names of Python.
"""

import functools
import inspect
import re
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from dsv4_shard.catalog.option import Field, Option, Options, checked, fields_of, kinds_of
from dsv4_shard.errors import ShardError, UsageError

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")
R = TypeVar("R")
O = TypeVar("O", bound=Options)  # noqa: E741

_WIDTH = 120

_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")


class Hint(str):
    """A note that repeats an error's hint. The command line prints the hint itself, and not the note."""


class Later:
    """A module that is imported on first use of one of its names, such as in an annotation."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


def in_python(text: str) -> str:
    """Return text with options written as in Python: `gpu_memory` for `--gpu-memory`. Commands in it stay unchanged."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") and " " in part else _spelled(part) for part in parts)


def _spelled(text: str) -> str:
    return _OPTION.sub(lambda match: match[1].replace("-", "_"), text)


class verb(Generic[P, O]):
    """Decorates a function of one or two arguments and `options`; the options become keywords."""

    def __init__(self, options: Callable[P, O]) -> None:
        self.options = cast("type[O]", options)

    @overload
    def __call__(self, function: Callable[[A, O], R]) -> Callable[Concatenate[A, P], R]: ...

    @overload
    def __call__(self, function: Callable[[A, B, O], R]) -> Callable[Concatenate[A, B, P], R]: ...

    def __call__(self, function: Callable[..., R]) -> Callable[..., R]:
        *own, _ = inspect.signature(function).parameters.values()

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> R:
            try:
                given = _positional(function.__name__, own, args, options)
                return function(*given, self.options.of(options))
            except ShardError as error:
                if error.hint is not None and not any(isinstance(note, Hint) for note in _notes(error)):
                    error.add_note(Hint(in_python(error.hint)))
                raise

        _describe(call, own, fields_of(self.options))
        return call


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _positional(verb: str, own: list[inspect.Parameter], args: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    """Return the positional arguments of a verb. Arguments given by name are removed from `options`."""
    if len(args) > len(own):
        raise UsageError(f"{verb} takes {' and '.join(parameter.name for parameter in own)}; options go by name")
    values = []
    for number, parameter in enumerate(own):
        name = parameter.name
        if number < len(args) and name not in options:
            value = args[number]
        elif number >= len(args) and name in options:
            value = options.pop(name)
        else:
            said = "is given twice" if number < len(args) else "must be given"
            raise UsageError.about(name, ..., said)
        is_place = kinds_of(parameter.annotation) in ((str, Path), (str,))  # the verb checks other types itself
        values.append(checked_place(name, value) if is_place else value)
    return values


def checked_place(name: str, value: Any) -> Any:
    """Return a path, or text that is a path, a URL or the name of a repository.

    Raises:
        UsageError: The value has another type, or is empty.
    """
    if isinstance(value, str) and not value.strip():
        raise UsageError(f"no {name}: the name is empty", hint="A variable in its place may not be set.")
    return checked(name, value, (str, Path), Option(help=""))


def _describe(call: Callable[..., Any], own: list[inspect.Parameter], fields: tuple[Field, ...]) -> None:
    """Set the signature, annotations and docstring that callers of the verb see."""
    returns = call.__annotations__.get("return")
    keywords = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required else field.default,
            annotation=field.type,
        )
        for field in fields
    ]
    call.__signature__ = inspect.Signature([*own, *keywords], return_annotation=returns)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *keywords)}
    call.__annotations__["return"] = returns
    if fields:
        lines = "\n".join(_line(field) for field in fields)
        call.__doc__ = f"{(call.__doc__ or '').rstrip()}\n\n    Options:\n\n{lines}\n    "


def _line(field: Field) -> str:
    shows = in_python(field.option.shows or "")
    default = "must be given" if field.is_required else f"default: {shows or repr(field.default)}"
    text = re.sub(r"(?<!\.)\.$", "", in_python(field.option.help))
    text = f"{field.name}: {text} ({default})."
    return textwrap.fill(text, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 12)


def wrong_type(name: str, value: object, expected: str) -> UsageError:
    """Return the error for a value whose type a verb does not accept."""
    return UsageError.about(name, ..., f"must be {expected}, not {type(value).__name__}")
