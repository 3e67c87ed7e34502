"""Headings, paragraphs, commands to be copied and sizes: the pieces of what every command prints."""

import textwrap

from rich.console import Console
from rich.text import Text

from dsv4_shard.escape import clean

_UNITS = ("B", "kB", "MB", "GB", "TB")
_GIB = 1 << 30


def size(nbytes: int) -> str:
    """Bytes in decimal units, as disks and checkpoints are sold."""
    number, unit = float(nbytes), 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{nbytes} B" if unit == 0 else f"{number:.2f} {_UNITS[unit]}"


def gib(nbytes: int) -> str:
    """Bytes in GiB, as GPUs' memory is counted."""
    return f"{nbytes / _GIB:.1f} GiB"


def heading(console: Console, text: str) -> None:
    """A line of its own, after a blank one."""
    console.print()
    console.print(Text(text, style="bold"))


def item(console: Console, text: str, style: str = "") -> None:
    """A paragraph, indented, wrapped at the terminal's width."""
    indented(console, clean(text), 2, style)


def indented(console: Console, text: str, indent: int, style: str = "") -> None:
    """Wrapped by us: rich would fill each line with blanks to the full width."""
    for line in textwrap.wrap(text, max(20, console.width - indent), break_long_words=False, break_on_hyphens=False):
        console.print(Text(" " * indent + line, style=style), soft_wrap=True)


def to_copy(console: Console, line: str) -> None:
    """A command on one line, however long: it must survive being copied."""
    console.print(Text("  " + clean(line)), soft_wrap=True)
