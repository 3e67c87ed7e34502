"""The yardstick: how fast the disk takes a plain sequential write and an fsync."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.settings import Settings, require_room, say
from benchmarks.spread import Spread, spread

CHUNK_BYTES = 8 << 20
RWF_DONTCACHE = 0x80
"""Writes that leave the page cache as soon as they are on the disk: Linux 6.14, and a file system that knows it."""

WAYS = {"buffered": 0, "RWF_DONTCACHE": RWF_DONTCACHE}


@dataclass(frozen=True, slots=True)
class DiskWrite:
    """One way of writing."""

    case: str
    nbytes: int
    gb_per_second: Spread


def write_rate(folder: Path, nbytes: int, flags: int) -> float:
    """Bytes a second of a new file of random bytes, fsync included. Raises OSError where `flags` are not known."""
    chunk = os.urandom(min(CHUNK_BYTES, nbytes))
    path = folder / "yardstick"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        started = time.monotonic()
        done = 0
        while done < nbytes:
            done += os.pwritev(fd, [chunk], done, flags)
        os.fsync(fd)
        return done / (time.monotonic() - started)
    finally:
        os.close(fd)
        path.unlink()
        os.sync()


def write_rates(folder: Path, nbytes: int) -> dict[str, float]:
    """Bytes a second of every way that this kernel and file system have."""
    rates = {}
    for way, flags in WAYS.items():
        try:
            rates[way] = write_rate(folder, nbytes, flags)
        except OSError as error:
            if not flags:
                raise
            say(f"disk: no {way} here: {error.strerror}")
    return rates


def measure(settings: Settings) -> list[DiskWrite]:
    """All ways, in turns."""
    nbytes = settings.nbytes // 2
    require_room(settings.scratch, nbytes)
    rounds = []
    for number in range(settings.rounds):
        say(f"disk: round {number + 1} of {settings.rounds}")
        rounds.append(write_rates(settings.scratch, nbytes))
    return [DiskWrite(way, nbytes, spread(one[way] / 1e9 for one in rounds)) for way in rounds[0]]


def table(rows: list[DiskWrite]) -> Table:
    """For a person."""
    shown = Table("sequential write + fsync", "size", "GB/s", title="The disk alone")
    for row in rows:
        shown.add_row(row.case, f"{row.nbytes / 1e9:.2f} GB", str(row.gb_per_second))
    return shown
