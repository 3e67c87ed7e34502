"""What a share of the ranks reads, for each way to cut: counted by a source, reckoned by the recipe, and how fast.

The first of 1, 2, 4, 8 and 16 shares of TP 16. The ranges are counted in a run of one worker in this process, the time
is that of the command with `--ranks` and its own number of workers.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rich.table import Table
from support.counting_source import CountingSource

from benchmarks.against_cp import remove
from benchmarks.page_cache import prepare as prepare_cache
from benchmarks.running import run, tool
from benchmarks.settings import Settings, require_room, say
from benchmarks.sized import write_sized
from benchmarks.spread import Spread, spread
from dsv4_shard.catalog.rank_ranges import share_of, span_of
from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.opening import open_source
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.reading import readings
from dsv4_shard.sharding.run import reshard
from dsv4_shard.text.suggest import as_option

TP = 16
SHARES = (1, 2, 4, 8, 16)
CASES: dict[str, dict[str, Any]] = {
    "columns (MoE TP 16)": {},
    "whole experts (EP 16)": {"ep": 16},
    "FP4 to FP8 (reference)": {"engine": "reference", "expert_dtype": "fp8"},
}
"""Name -> the options of the request beside TP 16."""


@dataclass(frozen=True, slots=True)
class ShareRead:
    """The first of so many `shares`: bytes that a source counted, that the recipe reckons, uses and writes.

    `most` is how often the byte that was read most often was read.
    """

    case: str
    shares: int
    counted: int
    reckoned: int
    used: int
    written: int
    ranges: int
    most: int
    gb_per_second: Spread


def measure(settings: Settings) -> list[ShareRead]:
    """Every case with every number of shares."""
    source = write_sized(settings.scratch / "checkpoint", settings.nbytes)
    require_room(settings.scratch, 3 * settings.nbytes)
    found = [_measure_share(settings, source, case, shares) for case in CASES for shares in SHARES]
    remove(source)
    return found


def _measure_share(settings: Settings, source: Path, case: str, shares: int) -> ShareRead:
    out, options = settings.scratch / "out", CASES[case]
    checkpoint = read_checkpoint(open_source(str(source)))
    inventory = take_inventory(checkpoint)
    job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, Request(tp=TP, **options)),
                  share_of(TP, 0, shares))  # fmt: skip
    words = [word for name, value in options.items() for word in (as_option(name), str(value))]
    command = ["--tp", str(TP), *words, "--ranks", span_of(job.ranks)]
    (reckoned,) = readings(job.recipe, [job.ranks])
    counting = CountingSource(checkpoint.source)
    reshard(job, replace(checkpoint, source=cast(Any, counting)), out, workers=1)
    remove(out)
    return ShareRead(
        case=case,
        shares=shares,
        counted=counting.nbytes,
        reckoned=reckoned.read,
        used=reckoned.used,
        written=reckoned.written,
        ranges=len(counting.reads),
        most=max(counting.reads.values()),
        gb_per_second=spread(_rates(settings, command, reckoned.read + reckoned.written, source, out)),
    )


def _rates(settings: Settings, command: list[str], nbytes: int, source: Path, out: Path) -> list[float]:
    """GB read and written a second by the command, in each round."""
    found = []
    for number in range(settings.rounds):
        say(f"shares: {' '.join(command)}: round {number + 1} of {settings.rounds}")
        prepare_cache(source, settings.cold)
        found.append(nbytes / run(tool("reshard", str(source), str(out), *command)).seconds / 1e9)
        remove(out)
    return found


def table(rows: list[ShareRead]) -> Table:
    """For a person: a line for each case and number of shares."""
    shown = Table("", "shares", "reads", "reckoned", "of it used", "writes", "ranges", "a byte, at most", "GB/s",
                  title=f"The first of so many shares of TP {TP}: what it reads and writes")  # fmt: skip
    for row in rows:
        sizes = [f"{nbytes / 1e9:.3f} GB" for nbytes in (row.counted, row.reckoned, row.used, row.written)]
        most = f"{row.most} time{'s' if row.most > 1 else ''}"
        shown.add_row(row.case, str(row.shares), *sizes, f"{row.ranges:,}", most, str(row.gb_per_second))
    return shown
