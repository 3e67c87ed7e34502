"""Where commands print to: how wide it is, and which signs it has."""

import codecs
import io
import os
import sys

from rich.console import Console

_PIPED_WIDTH = 80
"""A file's lines do not depend on the window that it was made in; COLUMNS overrides this."""

_ASCII = {"×": "x", "├": "+", "─": "-", "┼": "+", "┤": "+", "…": "..."}
"""What stands for our own signs where there is nothing but ASCII."""

_SIGNS = "dsv4_shard.signs"


def consoles() -> tuple[Console, Console]:
    """Those of stdout and stderr. Without colours where nobody looks, or NO_COLOR asks for it."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else _PIPED_WIDTH
    return Console(width=width, highlight=False, emoji=False), Console(stderr=True, highlight=False, emoji=False)


def show_signs(stream: io.TextIOWrapper) -> None:
    """Have `stream` write what its encoding lacks in ASCII: our own signs by others, all else escaped.

    LC_ALL=C asks for ASCII, though Python's streams are then UTF-8, unless Python itself is told an encoding.
    """
    told = any(os.environ.get(name) for name in ("PYTHONIOENCODING", "PYTHONUTF8"))
    plain = os.environ.get("LC_ALL") in ("C", "POSIX") and not told
    stream.reconfigure(encoding="ascii" if plain else None, errors=_SIGNS)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


codecs.register_error(_SIGNS, _in_ascii)
