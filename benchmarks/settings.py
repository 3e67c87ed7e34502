"""What the command line asked for, how it is told to the person who waits, and whether there is room for it."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

SPARE_BYTES = 256 << 20
"""Left free on the disk: file systems slow down as they fill."""


class NotMeasured(Exception):
    """This machine has too little room, memory or else for a measurement; the message has the numbers."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`scratch` is a folder that may be filled, `nbytes` the size of a generated checkpoint."""

    scratch: Path
    nbytes: int
    rounds: int
    cold: bool
    converter: Path | None
    converter_nbytes: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that was not measured, and why."""

    case: str
    skipped: str


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def require_room(folder: Path, nbytes: int) -> None:
    """Raises NotMeasured where the disk of `folder` has no room for `nbytes`."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + SPARE_BYTES:
        raise NotMeasured(f"{free / 1e9:.1f} GB free under {folder}, {nbytes / 1e9:.1f} GB needed")
