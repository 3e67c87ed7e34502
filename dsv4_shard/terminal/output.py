"""Where the result of a command goes: with --json its document to stdout, else its screen."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

    from dsv4_shard.text.document import Document

D = TypeVar("D", bound="Document")

P = ParamSpec("P")


def show(
    document: D,
    as_json: bool,
    screen: "Callable[Concatenate[Console, D, P], None]",
    *more: P.args,
    **named: P.kwargs,
) -> None:
    """Print a document as JSON, or on its screen, to which `more` and `named` go."""
    if as_json:
        print_json(document)
    else:
        screen(output_console(), document, *more, **named)


def print_json(document: "Document") -> None:
    """Print a document as JSON, with the newline that it ends with."""
    print(document.to_json(), end="")


def output_console() -> "Console":
    """The console for stdout. `rich` is imported only here: --help and --version do without."""
    from dsv4_shard.terminal.console import consoles

    return consoles()[0]


def log_console() -> "Console":
    """The console for stderr."""
    from dsv4_shard.terminal.console import consoles

    return consoles()[1]
