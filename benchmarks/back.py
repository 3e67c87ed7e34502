"""The way back against `cp -r` of what it writes: rank shards merged, and resharded for other ranks.

`read_over_ranks` is the bytes read for each byte of the rank files, start-up's own included: what ranks hold alike is
read from each of them.
"""

from dataclasses import dataclass

from rich.table import Table

from benchmarks.against_cp import Comparison, compare, folder_bytes, one_round, remove
from benchmarks.running import run, tool
from benchmarks.settings import Settings, require_room, say
from benchmarks.sized import write_sized

SGLANG, EIGHT, SIXTEEN = ("--tp", "16"), ("--engine", "reference", "--tp", "8"), ("--engine", "reference", "--tp", "16")

CASES: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "SGLang TP16, merged": (SGLANG, "merge", ()),
    "reference TP8, merged": (EIGHT, "merge", ()),
    "reference TP8 to TP16": (EIGHT, "reshard", SIXTEEN),
}
"""How the shards are made, and what is done with them."""

FOLDERS = 5
"""Room for this many times the checkpoint: itself, the shards, what is made of them and its copy, some of it larger."""


@dataclass(frozen=True, slots=True)
class Back:
    """One case; sizes in bytes, each file counted once."""

    case: str
    ranks_bytes: int
    output_bytes: int
    against_cp: Comparison
    read_over_ranks: float


def measure(settings: Settings) -> list[Back]:
    """Every case."""
    require_room(settings.scratch, FOLDERS * settings.nbytes)
    source = write_sized(settings.scratch / "checkpoint", settings.nbytes)
    rows = []
    for case, (made, verb, options) in CASES.items():
        ranks, out = settings.scratch / "ranks", settings.scratch / "out"
        run(tool("reshard", str(source), str(ranks), *made))
        rounds = []
        for number in range(settings.rounds):
            say(f"{case}: round {number + 1} of {settings.rounds}")
            rounds.append(one_round(ranks, out, options, settings.cold, verb))
        size = folder_bytes(ranks)
        read = rounds[-1].ours.bytes_read / size
        rows.append(Back(case, size, folder_bytes(out), compare(rounds), read))
        remove(ranks)
        remove(out)
    remove(source)
    return rows


def table(rows: list[Back]) -> Table:
    """For a person."""
    columns = (
        "shards",
        "size",
        "output",
        "seconds",
        "speed / cp",
        "speed / cp and fsync",
        "peak memory",
        "read / size",
    )
    shown = Table(*columns, title="The way back, against cp -r of what it writes")
    for row in rows:
        sizes = [f"{n / 1e9:.2f} GB" for n in (row.ranks_bytes, row.output_bytes)]
        found = row.against_cp
        shown.add_row(row.case, *sizes, f"{found.seconds:.2f}", str(found.speed_over_cp),
                      str(found.speed_over_durable_cp), f"{found.peak_memory >> 20} MiB",
                      f"{row.read_over_ranks:.3f}")  # fmt: skip
    return shown
