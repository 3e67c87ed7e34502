"""Headings, paragraphs and commands: the pieces of every command's output.

This module wraps text itself: rich would fill each line with blanks up to the full width.
"""

import re
import textwrap

from rich.console import Console
from rich.text import Text

from dsv4_shard.text.sanitize import clean

MIN_WIDTH = 20
"""Nothing is made narrower than this number of columns."""


def wrap(text: str, width: int) -> list[str]:
    """Return lines of at most `width` columns.

    Longer words are broken where `pieces` says, else anywhere. Paths are not broken, since users copy them.
    """
    wrapper = _Wrapper(width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in wrapper.wrap(text):
        whole = len(line) <= width or "/" in line
        lines += [line] if whole else [line[start : start + width] for start in range(0, len(line), width)]
    return lines


def pieces(word: str) -> list[str]:
    """Break points in a long word: after each dot and underscore of a name; never inside a path."""
    return [word] if "/" in word else re.findall(r"[^._]*[._]|[^._]+", word)


class _Wrapper(textwrap.TextWrapper):
    def _split(self, text: str) -> list[str]:
        chunks = super()._split(text)
        return [part for chunk in chunks for part in (pieces(chunk) if len(chunk) > self.width else [chunk])]


def heading(console: Console, text: str) -> None:
    """Print a heading after a blank line."""
    console.print()
    title(console, text)


def title(console: Console, text: str) -> None:
    """Print the title of the output, or of a part of it."""
    paragraph(console, text, style="bold")


def item(console: Console, text: str, style: str = "", indent: int = 2) -> None:
    """Print a paragraph below a heading; a paragraph that belongs to another is indented by 4."""
    paragraph(console, text, style, indent)


def paragraph(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Print text wrapped at the terminal's width."""
    for line in wrap(clean(text), max(MIN_WIDTH, console.width) - indent):
        console.print(Text(" " * indent + line, style=style), soft_wrap=True)


def to_copy(console: Console, line: str) -> None:
    """Print a command on one line, however long, so that it can be copied."""
    console.print(Text("  " + clean(line)), soft_wrap=True)
