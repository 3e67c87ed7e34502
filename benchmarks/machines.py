"""How long V4-Pro takes on one machine and on several, from measured rates, and where more stop to pay.

    python -m benchmarks.machines [--network 3.125] [--shared 10] [--disk GB/s] [--machine GB/s]

What each share reads and writes is that of its recipe, from the headers of the real checkpoint. The rates of the disk
and of a machine with all of its CPUs are measured here if they are not given, those of networks are assumptions. Writes
the table into docs/explanation/machines.md. As a part of `python -m benchmarks` it only prints it.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from support.checkpoints.skeletons import write_skeleton

from benchmarks.against_cp import folder_bytes, remove
from benchmarks.disk import write_rates
from benchmarks.page_cache import prepare as prepare_cache
from benchmarks.running import run, tool
from benchmarks.settings import Settings, require_room, say
from benchmarks.sized import tensor_bytes, write_least, write_sized
from dsv4_shard.catalog.rank_ranges import share_of
from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.opening import open_source
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.reading import Reading, readings

MODEL, TP, GPU = "DeepSeek-V4-Pro", 16, "h20-96"
NODES = (1, 2, 4, 8, 16)
COLUMNS = "columns: `--tp 16`"
CUTS: dict[str, dict[str, Any]] = {
    COLUMNS: {"gpu": GPU},
    "whole experts: `--tp 16 --ep 16`": {"gpu": GPU, "ep": 16},
}
"""Kind of cut -> the options of the request beside TP."""

DOCUMENT = Path(__file__).parent.parent / "docs" / "explanation" / "machines.md"
PAYS = 1.25
"""Twice as many machines pay where they make it at least so many times faster."""


@dataclass(frozen=True, slots=True)
class Rates:
    """GB/s: a machine's disk when written to, its link, and a file system that all share.

    `machine` is what one machine of `cpus` reads and writes together, from memory into memory.
    """

    disk: float
    machine: float
    cpus: int
    network: float = 3.125
    shared: float = 10.0


@dataclass(frozen=True, slots=True)
class Share:
    """What each of so many machines reads from the checkpoint and writes: bytes."""

    nodes: int
    read: int
    written: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a way of storing takes on so many machines, and what it waits for; `gain` is that over half as many."""

    case: str
    nodes: int
    read: int
    written: int
    seconds: float
    limit: str
    gain: float


def readings_of(scratch: Path) -> dict[str, list[Reading]]:
    """For each case of `CUTS`, what the first of so many machines reads and writes; the others do as much."""
    checkpoint = read_checkpoint(open_source(str(write_skeleton(scratch / "pro", MODEL))))
    inventory = take_inventory(checkpoint)
    found = {}
    for case, options in CUTS.items():
        plan = make_plan(checkpoint, inventory, Request(tp=TP, **options), MODEL)
        recipe = prepare(checkpoint, inventory, plan).recipe
        found[case] = readings(recipe, [share_of(TP, 0, nodes) for nodes in NODES])
    remove(scratch / "pro")
    return found


def shares_of(found: dict[str, list[Reading]]) -> list[Share]:
    """What each of so many machines reads and writes where columns are cut."""
    return [Share(nodes, one.read, one.written) for nodes, one in zip(NODES, found[COLUMNS], strict=True)]


def estimates(shares: Iterable[Share], rates: Rates) -> list[Estimate]:
    """Every way of storing, on every number of machines."""
    found: list[Estimate] = []
    before: dict[str, float] = {}
    for share in shares:
        for case, waits in _cases(share, rates):
            limit = max(waits, key=lambda what: waits[what])
            gain = before.get(case, waits[limit]) / waits[limit]
            before[case] = waits[limit]
            found.append(Estimate(case, share.nodes, share.read, share.written, waits[limit], limit, gain))
    return found


def _cases(share: Share, rates: Rates) -> Iterator[tuple[str, dict[str, float]]]:
    """Seconds that each thing takes; they go on at the same time, so the slowest of them is what a run takes."""
    read, written, nodes = share.read / 1e9, share.written / 1e9, share.nodes
    cpu = {"CPUs": (read + written) / rates.machine}
    link = {"link": read / rates.network}
    yield "own links, own disks", cpu | link | {"disk": written / rates.disk}
    yield "shared source, own disks", cpu | link | {"shared": nodes * read / rates.shared, "disk": written / rates.disk}
    both = {"link": max(read, written) / rates.network, "shared": nodes * (read + written) / rates.shared}
    yield "shared source and output", cpu | both


def measure_rates(settings: Settings, given: dict[str, float]) -> Rates:
    """The disk's and the machine's, as far as they are not given."""
    found = {"cpus": len(os.sched_getaffinity(0))} | given
    if "disk" not in found:
        require_room(settings.scratch, settings.nbytes)
        say("machines: the disk")
        found["disk"] = max(write_rates(settings.scratch, settings.nbytes).values()) / 1e9
    if "machine" not in found:
        found["machine"] = _machine_rate(settings) / 1e9
    return Rates(**found | {name: round(found[name], 2) for name in ("disk", "machine")})  # type: ignore[arg-type]


def _machine_rate(settings: Settings) -> float:
    """Bytes read and written a second, from the page cache into memory where there is such a place.

    Hashing is included, start-up is not.
    """
    memory = Path("/dev/shm")
    source = write_sized(settings.scratch / "checkpoint", settings.nbytes)
    least = write_least(settings.scratch / "least")
    rates = []
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else settings.scratch) as folder:
        require_room(Path(folder), 2 * settings.nbytes)
        for number in range(settings.rounds):
            say(f"machines: all CPUs, round {number + 1} of {settings.rounds}")
            prepare_cache(source, False)
            out = Path(folder) / "out"
            startup = run(tool("reshard", str(least), str(out), "--tp", str(TP))).seconds
            remove(out)
            one = run(tool("reshard", str(source), str(out), "--tp", str(TP)))
            rates.append((tensor_bytes(source) + folder_bytes(out)) / max(one.seconds - startup, 0.001))
            remove(out)
    remove(source)
    remove(least)
    return sorted(rates)[len(rates) // 2]


def measure(settings: Settings) -> list[Estimate]:
    """With the assumed rates of networks, and this machine's of all else."""
    return estimates(shares_of(readings_of(settings.scratch)), measure_rates(settings, {}))


def table(rows: list[Estimate]) -> Table:
    """For a person: a row for each number of machines."""
    shown = Table(*_columns(rows), title=f"{MODEL} for SGLang at TP {TP}")
    for line in _lines(rows):
        shown.add_row(*line)
    return shown


def markdown(rows: list[Estimate], rates: Rates, found: dict[str, list[Reading]]) -> str:
    """The same for the documentation, with the rates that it was made from, where machines stop to pay, and what a
    share reads by kind of cut.
    """
    lines = [_columns(rows), ["---:"] * len(_columns(rows)), *_lines(rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    last = [f"- {case}: up to {nodes} machine{'s' if nodes > 1 else ''}" for case, nodes in _pays(rows).items()]
    return (
        f"<!-- rates {json.dumps(asdict(rates))} -->\n"
        f"GB/s: disk {rates.disk:.2f}, {rates.cpus} CPUs {rates.machine:.2f} (read and written together), link "
        f"{rates.network:.2f}, shared file system {rates.shared:.1f}.\n\n{text}\n\n"
        f"Twice as many machines make it at least {PAYS} times faster:\n\n" + "\n".join(last) + f"\n\n{_cuts(found)}\n"
    )


def _cuts(found: dict[str, list[Reading]]) -> str:
    """For each kind of cut and number of machines what each reads, and how much of it goes into its files."""
    heads = ["each reads, of it used", *(f"{nodes} machine{'s' if nodes > 1 else ''}" for nodes in NODES)]
    lines = [[case, *(f"{one.read / 1e9:.0f} GB, {100 * one.used / one.read:.0f} %" for one in some)]
             for case, some in found.items()]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---", *["---:"] * len(NODES)], *lines])


def _columns(rows: list[Estimate]) -> list[str]:
    return ["machines", "each reads", "each writes", "all read", *dict.fromkeys(row.case for row in rows)]


def _lines(rows: list[Estimate]) -> Iterator[list[str]]:
    by_nodes: dict[int, list[Estimate]] = {}
    for row in rows:
        by_nodes.setdefault(row.nodes, []).append(row)
    for nodes, some in by_nodes.items():
        first = some[0]
        sizes = [f"{nbytes / 1e9:.0f} GB" for nbytes in (first.read, first.written, nodes * first.read)]
        yield [str(nodes), *sizes, *(f"{_minutes(row.seconds)} ({row.limit})" for row in some)]


def _minutes(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


def _pays(rows: list[Estimate]) -> dict[str, int]:
    """For each way of storing the most machines of which each doubling paid."""
    found: dict[str, int] = {}
    stopped = set()
    for row in rows:
        if row.nodes > NODES[0] and row.gain < PAYS:
            stopped.add(row.case)
        if row.case not in stopped:
            found[row.case] = row.nodes
    return found


def into(document: str, text: str) -> str:
    """The document with another table."""
    return re.sub(r"(?s)(?<=<!-- table -->\n).*(?=<!-- end -->)", lambda _: text, document)


def rates_in(document: str) -> Rates:
    """Those that the document's table was made from."""
    found = re.search(r"<!-- rates (\{.*\}) -->", document)
    if found is None:
        raise ValueError("no rates in the document")
    return Rates(**json.loads(found[1]))


def main() -> None:
    """Measure what is not given, and write the table into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("disk", "machine", "network", "shared"):
        parser.add_argument(f"--{name}", type=float, metavar="GB/s")
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--gb", type=float, default=4, help="size of the checkpoint that is written (default: 4)")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    nbytes = int(given.pop("gb") * 1e9)
    with tempfile.TemporaryDirectory(prefix="dsv4-shard-bench-") as folder:
        settings = Settings(Path(folder), nbytes, 3, False, None, 0)
        rates = measure_rates(settings, given)
        found = readings_of(Path(folder))
        text = markdown(estimates(shares_of(found), rates), rates, found)
    DOCUMENT.write_text(into(DOCUMENT.read_text(), text))
    print(text)


if __name__ == "__main__":
    main()
