"""Where commands print to, and how wide that is."""

import os
import sys

from rich.console import Console

_PIPED_WIDTH = 80
"""A file's lines do not depend on the window that it was made in; COLUMNS overrides this."""


def consoles() -> tuple[Console, Console]:
    """Those of stdout and stderr. Without colours where nobody looks, or NO_COLOR asks for it."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else _PIPED_WIDTH
    return Console(width=width, highlight=False, emoji=False), Console(stderr=True, highlight=False, emoji=False)
