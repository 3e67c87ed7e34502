"""The consoles for stdout and stderr, and their width."""

import os
import sys
from typing import NoReturn

from rich.console import Console

_PIPED_WIDTH = 80
"""Width if output is piped: the lines of a file must not depend on the window. COLUMNS overrides it."""


class _Console(Console):
    """A console that raises BrokenPipeError, as print does; rich would end the process with exit code 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def consoles() -> tuple[Console, Console]:
    """Consoles for stdout and stderr; no colours when piped or with NO_COLOR."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else _PIPED_WIDTH
    return _Console(width=width, highlight=False, emoji=False), Console(stderr=True, highlight=False, emoji=False)
