"""The shares of one checkpoint from a Hub on loopback, each by a process of its own on this machine, all at once.

Each connection gives RATE bytes per second, as those of a distant server do. SGLang's TP 16 cuts `w2` of every expert
into columns, so that each share needs all of its rows. Bytes are those that the CDN sent, over those of the checkpoint;
time is that of the slowest process, over that of one process on all ranks.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.table import Table

from benchmarks.network import REPO, serving_sized
from benchmarks.running import Run, run, tool
from benchmarks.settings import Settings, say
from benchmarks.sized import tensor_bytes
from benchmarks.spread import Spread, spread
from dsv4_shard.catalog.rank_ranges import share_of, span_of

TP = 16
PROCESSES = (1, 2, 4)
RATE = 2_000_000
LARGEST_BYTES = 900_000_000


@dataclass(frozen=True, slots=True)
class SharedRead:
    """So many processes: `fetched` bytes over those of the checkpoint, `over_one` their time over that of one."""

    processes: int
    fetched: Spread
    seconds: Spread
    over_one: Spread
    cpu: Spread
    peak_memory: int


def measure(settings: Settings) -> list[SharedRead]:
    """All numbers of processes in turns. Raises NotMeasured without nginx."""
    found: dict[int, list[tuple[float, list[Run]]]] = {processes: [] for processes in PROCESSES}
    with serving_sized(settings, min(settings.nbytes, LARGEST_BYTES), RATE) as (_, server):
        whole = tensor_bytes(settings.scratch / "sized")
        run(tool("inspect", REPO))  # config and index are cached from here on
        for number in range(settings.rounds):
            say(f"shares: round {number + 1} of {settings.rounds}")
            for processes, rounds in found.items():
                server.bytes_sent()
                done = _together(settings, processes)
                rounds.append((server.bytes_sent() / whole, done))
    one = [_seconds(runs) for _, runs in found[1]]
    return [_row(processes, rounds, one) for processes, rounds in found.items()]


def _together(settings: Settings, processes: int) -> list[Run]:
    """Run all shares at once, each into the same folder."""
    out = settings.scratch / "shards"
    commands = [
        tool("reshard", REPO, str(out), "--tp", str(TP), "--runner", "marlin", "--ranks", span_of(ranks))
        for ranks in (share_of(TP, number, processes) for number in range(processes))
    ]
    with ThreadPoolExecutor(processes) as pool:
        done = list(pool.map(run, commands))
    shutil.rmtree(out)
    return done


def _seconds(runs: list[Run]) -> float:
    return max(one.seconds for one in runs)


def _row(processes: int, rounds: list[tuple[float, list[Run]]], one: list[float]) -> SharedRead:
    return SharedRead(
        processes,
        spread(fetched for fetched, _ in rounds),
        spread(_seconds(runs) for _, runs in rounds),
        spread(_seconds(runs) / alone for (_, runs), alone in zip(rounds, one, strict=True)),
        spread(sum(single.cpu for single in runs) for _, runs in rounds),
        max(single.peak_memory for _, runs in rounds for single in runs),
    )


def table(rows: list[SharedRead]) -> Table:
    """For a person."""
    columns = (
        "processes",
        "fetched of the checkpoint",
        "seconds",
        "over one process",
        "CPU seconds",
        "peak memory of one",
    )
    shown = Table(*columns, title="Shares of one checkpoint from a Hub on loopback")
    for row in rows:
        numbers = map(str, (row.fetched, row.seconds, row.over_one, row.cpu))
        shown.add_row(str(row.processes), *numbers, f"{row.peak_memory >> 20} MiB")
    return shown
