"""From a Hub on loopback: `inspect` of the full V4-Pro at 20 ms a request, and reshard of a generated checkpoint.

The Hub is in this process, on the same CPUs. V4-Pro is its headers, with holes for the weights. Each round starts with
an empty cache; `ranges` is with a Hub that does not answer for all headers at once, as mirrors do not.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from support.checkpoints.skeletons import write_skeleton
from support.servers.hub import HubServer, fake_digest
from support.servers.loopback import Fault

from benchmarks.running import Run, run, tool
from benchmarks.settings import Settings, require_room, say
from benchmarks.sized import write_sized
from benchmarks.spread import Spread, spread

MODEL, REPO, SIZED = "DeepSeek-V4-Pro", "deepseek-ai/DeepSeek-V4-Pro", "org/sized"
LATENCY_SECONDS = 0.02
LARGEST_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class RemoteCommand:
    """A command that reads from afar, or from here for comparison; what the server was asked for and sent."""

    case: str
    requests: int
    nbytes: int
    seconds: Spread
    peak_memory: int


def measure(settings: Settings) -> list[RemoteCommand]:
    """All cases in turns."""
    nbytes = min(settings.nbytes, LARGEST_BYTES)
    require_room(settings.scratch, 3 * nbytes)
    pro = write_skeleton(settings.scratch / "pro", MODEL)
    sized = write_sized(settings.scratch / "sized", nbytes)
    with HubServer() as hub:
        hub.add_repo(REPO, {"main": pro}, digest=fake_digest)
        hub.add_repo(SIZED, {"main": sized})
        os.environ.update(hub.env(settings.scratch / "home"))
        os.environ["XDG_CACHE_HOME"] = str(settings.scratch / "cache")
        found: dict[str, list[tuple[int, int, Run]]] = {}
        for number in range(settings.rounds):
            say(f"remote: round {number + 1} of {settings.rounds}")
            for case, done in _round(hub, settings.scratch, pro, sized):
                found.setdefault(case, []).append((len(hub.requests), hub.bytes_sent(), done))
    shutil.rmtree(pro)
    shutil.rmtree(sized)
    return [_row(case, rounds) for case, rounds in found.items()]


def _round(hub: HubServer, scratch: Path, pro: Path, sized: Path) -> Iterator[tuple[str, Run]]:
    """Each case once, with what its command took."""
    for case, repo, faults in (
        ("inspect V4-Pro, from a folder", str(pro), []),
        ("inspect V4-Pro, from the Hub", REPO, []),
        ("inspect V4-Pro, from the Hub again", REPO, []),
        ("inspect V4-Pro, from the Hub by ranges", REPO, [Fault("no_route", route="headers", times=None)]),
    ):
        if not case.endswith("again"):
            shutil.rmtree(scratch / "cache", ignore_errors=True)
        hub.reset()
        hub.faults += faults
        hub.latency = LATENCY_SECONDS
        yield case, run(tool("inspect", repo))
    hub.latency = 0.0
    for case, repo in (("reshard, from a folder", str(sized)), ("reshard, from the Hub", SIZED)):
        hub.reset()
        yield case, run(tool("reshard", repo, str(scratch / "shards"), "--tp", "16", "--runner", "marlin"))
        shutil.rmtree(scratch / "shards")


def _row(case: str, rounds: list[tuple[int, int, Run]]) -> RemoteCommand:
    return RemoteCommand(
        case,
        max(requests for requests, _, _ in rounds),
        max(nbytes for _, nbytes, _ in rounds),
        spread(done.seconds for _, _, done in rounds),
        max(done.peak_memory for _, _, done in rounds),
    )


def table(rows: list[RemoteCommand]) -> Table:
    """For a person."""
    shown = Table("command", "requests", "bytes", "seconds", "peak memory", title="From a Hub on loopback")
    for row in rows:
        shown.add_row(
            row.case, f"{row.requests:,}", f"{row.nbytes:,}", str(row.seconds), f"{row.peak_memory >> 20} MiB"
        )
    return shown
