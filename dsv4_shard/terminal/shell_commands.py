"""Commands for a shell, broken before options by a backslash."""

import re

from rich.console import Console
from rich.text import Text

from dsv4_shard.terminal.text import MIN_WIDTH, item
from dsv4_shard.text.sanitize import clean

_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")
"""A word of a shell command, with its quotes."""

_INDENT = 2


def to_copy(console: Console, command: str, comment: str = "") -> None:
    """Print a command so that it can be copied: within the width, broken before options by a backslash.

    A comment stands behind it, or above it if there is no room.
    """
    room = max(MIN_WIDTH, console.width) - _INDENT
    lines: list[str] = []
    line = ""
    for unit in _units(clean(command)):
        longer = f"{line} {unit}" if line else unit
        if line and len(longer) + len(" \\") > room:
            lines.append(f"{line} \\")
            longer = f"  {unit}"
        line = longer
    lines.append(line)
    behind = f"   # {clean(comment)}" if comment else ""
    is_beside = len(line) + len(behind) <= room
    if behind and not is_beside:
        item(console, behind.strip(), "dim", _INDENT)
    for whole in lines[:-1]:
        console.print(Text(" " * _INDENT + whole), soft_wrap=True)
    last = Text(" " * _INDENT + line)
    console.print(last.append(behind, "dim") if is_beside else last, soft_wrap=True)


def _units(command: str) -> list[str]:
    """The words of a command, an option together with its value."""
    units: list[str] = []
    for word in _WORD.findall(command):
        if units and units[-1].startswith("-") and not {" ", "="} & set(units[-1]) and not word.startswith("-"):
            units[-1] += f" {word}"
        else:
            units.append(word)
    return units
