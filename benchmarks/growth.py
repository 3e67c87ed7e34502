"""How time and memory grow with the checkpoint and with the number of ranks: SGLang's files, experts column-split.

Every case has its own `cp` beside it, since a disk's speed changes over minutes. Where checkpoint and output no longer
fit into the page cache together, `disk_read` and `cp_disk_read` say so.
"""

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.against_cp import Comparison, compare, folder_bytes, one_round, remove
from benchmarks.settings import NotMeasured, Settings, Skipped, require_room, say
from benchmarks.sized import EXPERTS, MANY_RANKS, tensor_bytes, write_sized

SIZES = (1 / 4, 1 / 2, 1, 2)
"""Of the size asked for, at TP 16."""

RANKS: dict[int, tuple[str, ...]] = {2: (), 4: (), 8: (), 16: (), 32: (), 64: ("--ep", "2")}
"""TP, and what it needs beside: 3072 columns over 64 ranks would be 48, less than a tile. At half the size."""

FOLDERS = 3.2
"""Room for this many times the checkpoint: itself, the output, its copy, and a bit that is each rank's own."""


@dataclass(frozen=True, slots=True)
class Growth:
    """One size and number of ranks."""

    case: str
    tp: int
    source_bytes: int
    output_bytes: int
    seconds_per_gb: float
    against_cp: Comparison


def measure(settings: Settings) -> list[Growth | Skipped]:
    """Sizes, then ranks."""
    rows: list[Growth | Skipped] = []
    for share in SIZES:
        rows += _on_one_checkpoint(settings, round(share * settings.nbytes), {16: ()}, EXPERTS)
    return rows + _on_one_checkpoint(settings, settings.nbytes // 2, RANKS, max(RANKS), **MANY_RANKS)


def _on_one_checkpoint(
    settings: Settings, nbytes: int, ranks: dict[int, tuple[str, ...]], experts: int, **changes: Any
) -> list[Growth | Skipped]:
    """Every number of ranks on one checkpoint of about `nbytes`."""
    cases = {tp: f"{nbytes / 1e9:.3g} GB, TP {tp}" for tp in ranks}
    try:
        require_room(settings.scratch, round(FOLDERS * nbytes))
    except NotMeasured as reason:
        say(f"growth: not at {nbytes / 1e9:.3g} GB: {reason}")
        return [Skipped(case, str(reason)) for case in cases.values()]
    source, out = settings.scratch / "checkpoint", settings.scratch / "out"
    write_sized(source, nbytes, experts, **changes)
    rows: list[Growth | Skipped] = []
    for tp, more in ranks.items():
        rounds = []
        for number in range(settings.rounds):
            say(f"growth: {cases[tp]}: round {number + 1} of {settings.rounds}")
            rounds.append(one_round(source, out, ("--tp", str(tp), *more), settings.cold))
        found, needed = compare(rounds), tensor_bytes(source)
        rate = found.seconds / needed * 1e9
        rows.append(Growth(cases[tp], tp, needed, folder_bytes(out), rate, found))
        remove(out)
    remove(source)
    return rows


def table(rows: list[Growth | Skipped]) -> Table:
    """For a person."""
    columns = ("asked for", "source", "output", "seconds", "s / GB", "speed / cp and fsync", "peak memory", "from disk")
    shown = Table(*columns, title="How time and memory grow (SGLang, experts column-split)")
    for row in rows:
        if isinstance(row, Skipped):
            shown.add_row(row.case, row.skipped)
            continue
        sizes = [f"{n / 1e9:.2f} GB" for n in (row.source_bytes, row.output_bytes)]
        found = row.against_cp
        shown.add_row(row.case, *sizes, f"{found.seconds:.2f}", f"{row.seconds_per_gb:.2f}",
                      str(found.speed_over_durable_cp), f"{found.peak_memory >> 20} MiB",
                      f"{found.disk_read / 1e9:.2f} GB")  # fmt: skip
    return shown
