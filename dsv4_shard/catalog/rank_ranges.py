"""Converts ranks between text (`0-7,9`) and numbers, and computes a process's share of the ranks."""

from collections.abc import Iterable, Mapping
from itertools import groupby

from dsv4_shard.errors import UsageError
from dsv4_shard.text.sanitize import short

MAX_RANKS = 4096

_MAX_DIGITS = 9

_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
"""Environment variables of torchrun and of srun: (number of the process, number of processes)."""


def parse_ranks(text: str) -> tuple[int, ...]:
    """Return the ranks that `text` names, sorted. Raises UsageError if it is not a list of ranks below MAX_RANKS."""
    ranks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = [_rank(number, text) for number in ((first, last) if dash else (first,))]
        if ends[-1] < ends[0]:
            raise _not_ranks(text)
        ranks.update(range(ends[0], ends[-1] + 1))
    return tuple(sorted(ranks))


def _rank(number: str, text: str) -> int:
    if not number.isdecimal():
        raise _not_ranks(text)
    if len(number) > _MAX_DIGITS or int(number) >= MAX_RANKS:
        raise UsageError.about("ranks", text, f"the last rank that there can be is {MAX_RANKS - 1}")
    return int(number)


def _not_ranks(text: str) -> UsageError:
    return UsageError.about("ranks", text, "not a list of ranks", hint="Write 0-7, or 0,2,4.")


def span_of(ranks: Iterable[int]) -> str:
    """Return the shortest text that `parse_ranks` reads as these ranks."""
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(sorted(ranks)), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def say_ranks(ranks: Iterable[int]) -> str:
    """Return the ranks as part of a sentence: `rank 3`, `ranks 0-7` or `no ranks`."""
    span = span_of(ranks)
    return f"rank {span}" if span.isdecimal() else f"ranks {span}" if span else "no ranks"


def share_of(world: int, number: int, shares: int) -> tuple[int, ...]:
    """Return the ranks of share `number` when `world` ranks are divided into `shares` contiguous, even shares.

    If there are more shares than ranks, the last shares are empty.
    """
    shares = min(shares, world)
    if number >= shares:
        return ()
    return tuple(range(number * world // shares, (number + 1) * world // shares))


def own_share(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return this process's number and the number of processes, from the variables of torchrun or Slurm.

    Raises UsageError if no launcher set them, or if they contradict each other.
    """
    for number, count in _LAUNCHERS:
        if number in environment or count in environment:
            found = [_count(name, environment.get(name)) for name in (number, count)]
            if found[0] >= found[1]:
                raise _no_share(f"{number} is {found[0]}, and {count} {found[1]}")
            return found[0], found[1]
    names = " or ".join(" and ".join(pair) for pair in _LAUNCHERS)
    raise _no_share(f"none of {names} is set", hint="Start it with torchrun or srun, or name the ranks.")


def _no_share(message: str, hint: str | None = None) -> UsageError:
    return UsageError.about("ranks", "auto", message, hint=hint)


def _count(name: str, text: str | None) -> int:
    if text is None:
        raise _no_share(f"{name} is not set")
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise _no_share(f"{name} is {short(text)}, not a number")
    return int(text)
