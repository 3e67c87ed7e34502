"""The consoles for stdout and stderr, and their width."""

import os
import sys

from rich.console import Console
from rich.theme import Theme

_PIPED_WIDTH = 80
"""Width if output is piped: the lines of a file must not depend on the window. COLUMNS overrides it."""


_PROGRESS = Theme(
    {
        "bar.complete": "cyan",
        "bar.finished": "green",
        "progress.data.speed": "none",
        "progress.download": "none",
        "progress.elapsed": "none",
        "progress.percentage": "none",
        "progress.remaining": "none",
    }
)
"""Styles of progress bars; rich writes rates in red, which reads as a warning."""


def consoles() -> tuple[Console, Console]:
    """Consoles for stdout and stderr; no colours when piped or with NO_COLOR."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else _PIPED_WIDTH
    err = Console(stderr=True, highlight=False, emoji=False, theme=_PROGRESS)
    return Console(width=width, highlight=False, emoji=False), err
