"""Progress callbacks of everything that moves bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from dsv4_shard.errors import UsageError


def ignore(*_: object) -> None:
    """A callback that nobody waits for."""


# --- options, for type checkers ------------------------------------------------------------------------------------


class MovingOptions(TypedDict, total=False):
    """Options of all that moves bytes. Those of these classes say nothing of what a verb returns."""

    jobs: int | None
    on_begin: Callable[[str, int], None]
    on_progress: Callable[[int], None]


# --- parts of the verbs --------------------------------------------------------------------------------------------


def path_or_none(path: str | Path | None) -> Path | None:
    return Path(path) if path is not None else None


def check_jobs(jobs: int | None) -> None:
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs}: must be at least 1")


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Called when something of so many bytes begins, from any worker as bytes move, and for those there already."""

    begin: Callable[[str, int], None]
    advance: Callable[[int], None]
    resume: Callable[[int], None]
