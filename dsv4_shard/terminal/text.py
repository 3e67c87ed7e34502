"""Headings and paragraphs: the pieces of every command's output.

This module wraps text itself: rich would fill each line with blanks up to the full width.
"""

import re
import textwrap

from rich.console import Console
from rich.text import Text

from dsv4_shard.text.sanitize import clean

MIN_WIDTH = 20
"""Nothing is made narrower than this number of columns."""


def wrap(text: str, width: int, hanging: int = 0) -> list[str]:
    """Return lines of at most `width` columns, those after the first indented by `hanging`.

    Longer words are broken where `pieces` says, else anywhere. Paths are not broken, since users copy them.
    """
    indent = " " * hanging
    wrapper = _Wrapper(width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)
    lines = []
    for line in wrapper.wrap(text):
        whole = len(line) <= width or "/" in line
        lines += [line] if whole else [line[start : start + width] for start in range(0, len(line), width)]
    return lines


def wrap_whole(text: str, width: int | None) -> list[str]:
    """Return lines of about `width` columns that break between words only, and never inside a command in backticks.

    Without a width, the text is one line.
    """
    if width is None:
        return [text]
    lines = [""]
    for word in _WHOLE.findall(text):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


_WHOLE = re.compile(r"(?:`[^`]*`|[^\s`])+|`")


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


def named(console: Console, name: str, text: str) -> None:
    """Print `name  text`: the name bold, the lines after the first indented further."""
    name = clean(name)
    first, *rest = wrap(f"{name}  {clean(text)}".lstrip(), max(MIN_WIDTH, console.width) - 2, hanging=2)
    line = Text(f"  {first}")
    line.stylize("bold", 2, 2 + len(name))
    for one in (line, *(Text(f"  {more}") for more in rest)):
        console.print(one, soft_wrap=True)
