"""Where commands print to, and how wide that is."""

import os
import sys
from typing import NoReturn

from rich.console import Console

_PIPED_WIDTH = 80
"""A file's lines do not depend on the window that it was made in; COLUMNS overrides this."""


class _Console(Console):
    """Leaves a reader who has gone to the command, as print does; rich would end the process with exit code 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def consoles() -> tuple[Console, Console]:
    """Those of stdout and stderr. Without colours where nobody looks, or NO_COLOR asks for it."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else _PIPED_WIDTH
    return _Console(width=width, highlight=False, emoji=False), Console(stderr=True, highlight=False, emoji=False)
