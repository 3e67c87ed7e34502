"""One command of ours and `cp -r` of what it wrote, in turns on the same disk."""

import os
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks.page_cache import drop, prepare
from benchmarks.running import Run, run, tool
from benchmarks.spread import Spread, spread

FSYNC = 'find "$1" -exec sync {} +'
"""fsync of every file and folder, as reshard does before its folder appears. `sync -f` would also wait for others."""


@dataclass(frozen=True, slots=True)
class Round:
    """A reshard, then cp of its output, then what it takes until that copy is on the disk."""

    ours: Run
    cp: Run
    fsync: Run

    @property
    def durable_cp_seconds(self) -> float:
        return self.cp.seconds + self.fsync.seconds


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians over some rounds; `speed_over_...` is the other's time divided by ours, round by round.

    Memory and what came from the disk are the most of any round: about no bytes, if the page cache held all.
    """

    seconds: float
    cp_seconds: float
    durable_cp_seconds: float
    speed_over_cp: Spread
    speed_over_durable_cp: Spread
    peak_memory: int
    disk_read: int
    cp_disk_read: int


def one_round(source: Path, out: Path, options: tuple[str, ...], cold: bool, verb: str = "reshard") -> Round:
    """Both into new folders beside each other; `out` is left, the copy is not. `verb` is our command.

    `--preserve=links` keeps as one file what is one file: cp would else write what SGLang's ranks share once for each.
    """
    twin = out.with_name("copy")
    remove(out)
    prepare(source, cold)
    ours = run(tool(verb, str(source), str(out), *options))
    drop(source)  # leaves memory for the output and its copy
    prepare(out, cold)
    cp = run(["cp", "-r", "--preserve=links", str(out), str(twin)])
    fsync = run(["sh", "-c", FSYNC, "sh", str(twin)])
    remove(twin)
    return Round(ours, cp, fsync)


def compare(rounds: list[Round]) -> Comparison:
    """What some rounds come to."""
    return Comparison(
        seconds=statistics.median(one.ours.seconds for one in rounds),
        cp_seconds=statistics.median(one.cp.seconds for one in rounds),
        durable_cp_seconds=statistics.median(one.durable_cp_seconds for one in rounds),
        speed_over_cp=spread(one.cp.seconds / one.ours.seconds for one in rounds),
        speed_over_durable_cp=spread(one.durable_cp_seconds / one.ours.seconds for one in rounds),
        peak_memory=max(one.ours.peak_memory for one in rounds),
        disk_read=max(one.ours.disk_read for one in rounds),
        cp_disk_read=max(one.cp.disk_read for one in rounds),
    )


def remove(folder: Path) -> None:
    """Remove a result for good: a file system frees blocks when it commits, which must not be in anyone's time."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a folder, each counted once however many names it has."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({one.st_ino: one.st_size for one in found}.values())
