"""What needs headers only: start-up, and inspect and plan on all 145,116 headers of V4-Pro."""

import shutil
from dataclasses import dataclass

from rich.table import Table
from support.checkpoints.skeletons import write_skeleton

from benchmarks.running import run, tool
from benchmarks.settings import Settings, say
from benchmarks.spread import Spread, spread

MODEL = "DeepSeek-V4-Pro"


@dataclass(frozen=True, slots=True)
class HeaderCommand:
    """A command that reads no weights."""

    case: str
    seconds: Spread
    peak_memory: int


def measure(settings: Settings) -> list[HeaderCommand]:
    """All commands in turns, after a first run that brings Python's modules and the headers into the page cache."""
    folder = write_skeleton(settings.scratch / "pro", MODEL)
    commands = {
        "--help": tool("--help"),
        f"inspect {MODEL}": tool("inspect", str(folder)),
        f"plan {MODEL} --tp 16": tool("plan", str(folder), "--tp", "16"),
        f"plan {MODEL} --gpus 64": tool("plan", str(folder), "--gpus", "64", "--gpu", "h20-96"),
        f"plan {MODEL}": tool("plan", str(folder)),
    }
    say("headers: first run")
    for command in commands.values():
        run(command)
    rounds = []
    for number in range(settings.rounds):
        say(f"headers: round {number + 1} of {settings.rounds}")
        rounds.append({case: run(command) for case, command in commands.items()})
    shutil.rmtree(folder)
    return [
        HeaderCommand(case, spread(one[case].seconds for one in rounds), max(one[case].peak_memory for one in rounds))
        for case in commands
    ]


def table(rows: list[HeaderCommand]) -> Table:
    """For a person."""
    shown = Table("command", "seconds", "peak memory", title="Headers only")
    for row in rows:
        shown.add_row(row.case, str(row.seconds), f"{row.peak_memory >> 20} MiB")
    return shown
