"""Shows an error: one style on stderr, and with `--json` a document on stdout too."""

import sys
from collections.abc import Sequence

from dsv4_shard.catalog.verb import Hint
from dsv4_shard.errors import ShardError
from dsv4_shard.text.sanitize import clean, short
from dsv4_shard.text.suggest import as_option

_ARGUMENTS = {"source": "SOURCE", "text": "TEXT", "out": "OUT", "folders": "OUT"}
"""Parameters of the verbs that are arguments, not options, of the commands."""


def show_error(error: ShardError, *, as_json: bool) -> None:
    """Print message, hint and notes."""
    message = clean(error.spelled(_as_given))
    hint = clean(error.hint) if error.hint else None
    notes = notes_of(error)
    _print(message, [hint, *notes] if hint else notes)
    if as_json:
        print_document(error.code(), message, hint, error.exit_code, notes)


def show_end(error: BaseException, said: str, exit_code: int, *, as_json: bool) -> None:
    """Print that a signal ended the command, and what it left behind; `said` is the code for scripts too."""
    notes = notes_of(error)
    for note in notes:
        print(f"  {note}", file=sys.stderr)
    if as_json:
        print_document(said, said, None, exit_code, notes)


def print_document(code: str, message: str, hint: str | None, exit_code: int, notes: Sequence[str] = ()) -> None:
    """Print the JSON document of an error on stdout."""
    from dsv4_shard.terminal.error_document import ErrorDetails, ErrorDocument

    details = ErrorDetails(code=code, message=message, hint=hint, exit_code=int(exit_code), notes=tuple(notes))
    print(ErrorDocument(error=details).to_json(), end="", flush=True)


def notes_of(error: BaseException) -> list[str]:
    """Notes about leftovers of a failed run, without those that repeat the hint."""
    return [clean(note) for note in getattr(error, "__notes__", ()) if not isinstance(note, Hint)]


def _print(message: str, below: Sequence[str]) -> None:
    """Print `error: message` and indented lines. On a terminal, `error:` is red and lines wrap at words."""
    from rich.text import Text

    from dsv4_shard.terminal.console import consoles
    from dsv4_shard.terminal.text import MIN_WIDTH, wrap_whole

    console = consoles()[1]
    width = max(MIN_WIDTH, console.width) if console.is_terminal else None
    first, *rest = wrap_whole(f"error: {message}", width)
    console.print(Text.assemble((first[:6], "bold red"), first[6:]), soft_wrap=True)
    for line in rest:
        console.print(Text(line), soft_wrap=True)
    for text in below:
        for line in wrap_whole(text, width and width - 2):
            console.print(Text(f"  {line}"), soft_wrap=True)


def _as_given(name: str, value: object) -> str:
    """Return a parameter as on the command line; `...` stands for its name alone."""
    word = _ARGUMENTS.get(name) or as_option(name)
    return word if value is ... else f"{word} {short(value)}"
