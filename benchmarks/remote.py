"""`inspect` of the full V4-Pro from a Hub that takes 20 ms to answer each request: requests, bytes, and time.

The Hub is on loopback, in this process; the files are V4-Pro's headers with holes for the weights. Each round starts
with an empty cache. `ranges` is with a Hub that does not answer for all headers at once, as mirrors do not.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.running import run, tool
from benchmarks.settings import Settings, say
from benchmarks.spread import Spread, spread

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from hubserver import HubServer, fake_digest
from loopback import Fault
from skeletons import write_skeleton

MODEL, REPO = "DeepSeek-V4-Pro", "deepseek-ai/DeepSeek-V4-Pro"
LATENCY_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class RemoteCommand:
    """A command that reads headers from afar, or from here for comparison."""

    case: str
    requests: int
    nbytes: int
    seconds: Spread


def measure(settings: Settings) -> list[RemoteCommand]:
    """All cases in turns."""
    folder = write_skeleton(settings.scratch / "pro", MODEL)
    cases: dict[str, list[tuple[int, int, float]]] = {}
    with HubServer(latency=LATENCY_SECONDS) as hub:
        hub.add_repo(REPO, {"main": folder}, digest=fake_digest)
        os.environ.update(hub.env(settings.scratch / "home"))
        os.environ["XDG_CACHE_HOME"] = str(settings.scratch / "cache")
        for number in range(settings.rounds):
            say(f"remote: round {number + 1} of {settings.rounds}")
            for case, repo, faults in (
                ("from a folder", str(folder), []),
                ("from the Hub", REPO, []),
                ("from the Hub, again", REPO, []),
                ("from the Hub, by ranges", REPO, [Fault("no_route", route="headers", times=None)]),
            ):
                if not case.endswith("again"):
                    shutil.rmtree(settings.scratch / "cache", ignore_errors=True)
                hub.reset()
                hub.faults += faults
                seconds = run(tool("inspect", repo)).seconds
                cases.setdefault(case, []).append((len(hub.requests), hub.bytes_sent(), seconds))
    shutil.rmtree(folder)
    return [
        RemoteCommand(case, max(r for r, _, _ in found), max(n for _, n, _ in found), spread(s for _, _, s in found))
        for case, found in cases.items()
    ]


def table(rows: list[RemoteCommand]) -> Table:
    """For a person."""
    shown = Table("inspect", "requests", "bytes", "seconds", title=f"{MODEL} afar, 20 ms a request")
    for row in rows:
        shown.add_row(row.case, str(row.requests), f"{row.nbytes:,}", str(row.seconds))
    return shown
