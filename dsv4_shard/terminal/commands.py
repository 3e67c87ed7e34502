"""Commands for a shell: broken at options with a backslash, and one command for all nodes."""

import re
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dsv4_shard.engines import NODE_RANK, settings_of
from dsv4_shard.terminal.text import MIN_WIDTH
from dsv4_shard.text.sanitize import clean

if TYPE_CHECKING:
    from dsv4_shard.planning import PlanLaunch

_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")
"""A word of a shell command, with its quotes."""

_INDENT = 2


def to_copy(console: Console, command: str) -> None:
    """Print a command so that it can be copied: within the width, broken before options by a backslash."""
    room = max(MIN_WIDTH, console.width) - _INDENT
    lines: list[str] = []
    line = ""
    for unit in _units(clean(command)):
        longer = f"{line} {unit}" if line else unit
        if line and len(longer) + len(" \\") > room:
            lines.append(f"{line} \\")
            longer = f"  {unit}"
        line = longer
    for whole in (*lines, line):
        console.print(Text(" " * _INDENT + whole), soft_wrap=True)


def _units(command: str) -> list[str]:
    """The words of a command, an option together with its value."""
    units: list[str] = []
    for word in _WORD.findall(command):
        if units and units[-1].startswith("-") and not {" ", "="} & set(units[-1]) and not word.startswith("-"):
            units[-1] += f" {word}"
        else:
            units.append(word)
    return units


def on_every_node(launch: "PlanLaunch") -> tuple[str, tuple[str, ...]]:
    """Return the command for every node, with `$NODE_RANK`, and the options to add on all nodes but the first."""
    environment = "".join(f"{name}={value} " for name, value in launch.environment.items())
    own = launch.launcher or launch.program
    if own is None:
        return "", ()
    *_, last = launch.node_options
    options, more = dict(own.options), {}
    node = str(len(launch.node_options) - 1)
    for name, value in last.items():
        if name == NODE_RANK:
            options[name] = "$NODE_RANK"
        elif value is not None and name in options:
            options[name] = re.sub(rf"(?<=node-){node}\b", "$NODE_RANK", value)
        else:
            more[name] = value
    words = [own.program, *settings_of(options)]
    if launch.launcher is not None and launch.program is not None:
        words += [launch.program.program, *settings_of(launch.program.options)]
    return environment + " ".join(words), settings_of(more)
