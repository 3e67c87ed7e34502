"""reshard against `cp -r` of its own output, and against the disk alone, all in the same minute.

Ours always includes Python's start and an fsync of every file; cp is taken both without and with one.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from benchmarks.against_cp import Comparison, Round, compare, folder_bytes, one_round, remove
from benchmarks.disk import write_rates
from benchmarks.running import Run, run, run_for_output, tool
from benchmarks.settings import Settings, require_room, say
from benchmarks.sized import tensor_bytes, write_least, write_sized
from benchmarks.spread import Spread, spread

CASES = {
    "experts whole, reference TP16": ("--engine", "reference", "--tp", "16"),
    "experts split, SGLang TP16": ("--tp", "16"),
    "FP4 to FP8, reference TP16": ("--engine", "reference", "--tp", "16", "--expert-dtype", "fp8"),
}


@dataclass(frozen=True, slots=True)
class Move:
    """One layout. `startup_seconds` is the same command on the least checkpoint, `dry_run_seconds` with `--dry-run`.

    `read_over_needed` is the bytes read, those of `--dry-run` apart, for each byte of the checkpoint's tensors: each
    once, and those of the output that are read back for their SHA-256, as a rule from the page cache;
    `written_over_output` the bytes written for each of the output. `share_of_disk` is the rate of output bytes divided
    by the disk's own of the same round, by way of writing. The kernel's counters are those of the last round.
    """

    case: str
    source_bytes: int
    output_bytes: int
    against_cp: Comparison
    dry_run_seconds: float
    startup_seconds: float
    gb_per_second: float
    share_of_disk: dict[str, Spread]
    bytes_read: int
    bytes_written: int
    disk_written: int
    read_over_needed: float
    written_over_output: float


@dataclass(frozen=True, slots=True)
class Turn:
    """All of one round: start-up, ours and cp, and the disk's bytes a second by way of writing."""

    startup: float
    round: Round
    disk: dict[str, float]


def measure(settings: Settings) -> list[Move]:
    """Every case."""
    require_room(settings.scratch, settings.nbytes)
    source = write_sized(settings.scratch / "checkpoint", settings.nbytes)
    least = write_least(settings.scratch / "least")
    _startup(least, settings.scratch / "out", next(iter(CASES.values())))  # brings Python's modules into the page cache
    moves = [_measure_case(settings, case, source, least) for case in CASES]
    remove(source)
    remove(least)
    return moves


def _measure_case(settings: Settings, case: str, source: Path, least: Path) -> Move:
    out, options = settings.scratch / "out", CASES[case]
    dry_run, listing = run_for_output(tool("reshard", str(source), str(out), *options, "--dry-run", "--json"))
    yardstick = settings.nbytes // 2
    require_room(settings.scratch, 2 * json.loads(listing)["bytes"] + yardstick)
    turns = []
    for number in range(settings.rounds):
        say(f"{case}: round {number + 1} of {settings.rounds}")
        remove(out)
        startup = _startup(least, out, options)
        turns.append(Turn(startup, one_round(source, out, options, settings.cold), write_rates(out.parent, yardstick)))
    move = _summarize(case, turns, tensor_bytes(source), folder_bytes(out), dry_run)
    remove(out)
    return move


def _startup(least: Path, out: Path, options: tuple[str, ...]) -> float:
    started = run(tool("reshard", str(least), str(out), *options))
    remove(out)
    return started.seconds


def _summarize(case: str, turns: list[Turn], needed: int, written: int, dry_run: Run) -> Move:
    last = turns[-1].round.ours
    shares = {
        way: spread(written / turn.round.ours.seconds / turn.disk[way] for turn in turns) for way in turns[0].disk
    }
    return Move(
        case=case,
        source_bytes=needed,
        output_bytes=written,
        against_cp=compare([turn.round for turn in turns]),
        dry_run_seconds=dry_run.seconds,
        startup_seconds=statistics.median(turn.startup for turn in turns),
        gb_per_second=statistics.median(written / turn.round.ours.seconds / 1e9 for turn in turns),
        share_of_disk=shares,
        bytes_read=last.bytes_read,
        bytes_written=last.bytes_written,
        disk_written=last.disk_written,
        read_over_needed=(last.bytes_read - dry_run.bytes_read) / needed,
        written_over_output=last.bytes_written / written,
    )


def table(rows: list[Move]) -> Table:
    """For a person: a column for each case."""
    shown = Table("", *(row.case for row in rows), title="reshard against cp -r --preserve=links of its output")
    lines: dict[str, Callable[[Move], str]] = {
        "source → output": lambda row: f"{row.source_bytes / 1e9:.2f} → {row.output_bytes / 1e9:.2f} GB",
        "seconds": lambda row: f"{row.against_cp.seconds:.2f}",
        "  of which start-up": lambda row: f"{row.startup_seconds:.2f}",
        "  (--dry-run)": lambda row: f"{row.dry_run_seconds:.2f}",
        "cp": lambda row: f"{row.against_cp.cp_seconds:.2f}",
        "cp and fsync": lambda row: f"{row.against_cp.durable_cp_seconds:.2f}",
        "speed / cp": lambda row: str(row.against_cp.speed_over_cp),
        "speed / cp and fsync": lambda row: str(row.against_cp.speed_over_durable_cp),
        "GB/s written": lambda row: f"{row.gb_per_second:.2f}",
    }
    for way in rows[0].share_of_disk:
        lines[f"share of the disk, {way}"] = partial(_share, way)
    lines |= {
        "peak memory": lambda row: f"{row.against_cp.peak_memory >> 20} MiB",
        "bytes read / needed": lambda row: f"{row.read_over_needed:.3f}",
        "bytes written / output": lambda row: f"{row.written_over_output:.3f}",
        "from disk": lambda row: f"{row.against_cp.disk_read / 1e9:.2f} GB",
        "from disk, cp": lambda row: f"{row.against_cp.cp_disk_read / 1e9:.2f} GB",
        "to disk": lambda row: f"{row.disk_written / 1e9:.2f} GB",
    }
    for name, show in lines.items():
        shown.add_row(name, *map(show, rows))
    return shown


def _share(way: str, row: Move) -> str:
    return str(row.share_of_disk[way])
