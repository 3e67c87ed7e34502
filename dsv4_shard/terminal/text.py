"""Headings, paragraphs and commands to be copied: the pieces of what every command prints.

We wrap ourselves: rich would fill each line with blanks up to the full width.
"""

import re
import textwrap

from rich.console import Console
from rich.text import Text

from dsv4_shard.text.sanitize import clean

MIN_WIDTH = 20
"""Columns below which nothing is made narrower."""


def wrap(text: str, width: int) -> list[str]:
    """Lines of `width` at most. A longer word is broken where `pieces` says, else anywhere; a path not at all: it is
    copied."""
    wrapper = _Wrapper(width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in wrapper.wrap(text):
        whole = len(line) <= width or "/" in line
        lines += [line] if whole else [line[start : start + width] for start in range(0, len(line), width)]
    return lines


def pieces(word: str) -> list[str]:
    """Where a word that is too long may be broken: a name after each dot and underscore, a path nowhere."""
    return [word] if "/" in word else re.findall(r"[^._]*[._]|[^._]+", word)


class _Wrapper(textwrap.TextWrapper):
    def _split(self, text: str) -> list[str]:
        chunks = super()._split(text)
        return [part for chunk in chunks for part in (pieces(chunk) if len(chunk) > self.width else [chunk])]


def heading(console: Console, text: str) -> None:
    """After a blank line."""
    console.print()
    title(console, text)


def title(console: Console, text: str) -> None:
    """What the command's output, or a part of it, is about."""
    paragraph(console, text, style="bold")


def item(console: Console, text: str, style: str = "", indent: int = 2) -> None:
    """A paragraph below a heading; one that goes with it is indented by 4."""
    paragraph(console, text, style, indent)


def paragraph(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Text wrapped at the terminal's width."""
    for line in wrap(clean(text), max(MIN_WIDTH, console.width) - indent):
        console.print(Text(" " * indent + line, style=style), soft_wrap=True)


def to_copy(console: Console, line: str) -> None:
    """A command on one line, however long: it must survive being copied."""
    console.print(Text("  " + clean(line)), soft_wrap=True)
