"""Converts ranks between text (`0-7,9`) and numbers, and computes a process's share of the ranks."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

from dsv4_shard.errors import UsageError
from dsv4_shard.text.sanitize import short

MAX_RANKS = 4096

_MAX_DIGITS = 9


class _Launcher(NamedTuple):
    """A program that starts processes, and its variables: the number of a process, and the number of processes.

    The first of `counts` that is set counts.
    """

    name: str
    number: str
    counts: tuple[str, ...]


_BY_HAND = _Launcher("torchrun", "RANK", ("WORLD_SIZE",))
"""Scripts and schedulers set these too. Only torchrun also sets _TORCHRUN_ID."""

_TORCHRUN_ID = "TORCHELASTIC_RUN_ID"

_SLURM = _Launcher("srun", "SLURM_PROCID", ("SLURM_NTASKS", "SLURM_NPROCS"))
"""Processes that MPI's launchers start in an allocation of Slurm have these too, of the daemon that started them."""

_LAUNCHERS = (
    _BY_HAND,
    _Launcher("mpirun", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    _Launcher("mpirun of MVAPICH", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)),
    _Launcher("mpiexec", "PMI_RANK", ("PMI_SIZE",)),
    _Launcher("flux run", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",)),
    _SLURM,
)
"""The launchers, each before those that may have started it. PMIx itself has no variable for the number of processes;
Open MPI and Slurm, which use it, set their own."""


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
    """Return this process's number and the number of processes, from the variables of the launcher that started it.

    A launcher may run inside another one: torchrun inside all, those of MPI inside Slurm. The innermost counts. Raises
    UsageError if no launcher set its variables, or if variables contradict each other.
    """
    there = [one for one in _LAUNCHERS if any(name in environment for name in (one.number, *one.counts))]
    if not there:
        names = ", ".join(f"{one.number} and {one.counts[0]} ({one.name})" for one in _LAUNCHERS)
        raise _no_share(f"none of these is set: {names}", hint="Start it with one of these, or name the ranks.")
    chosen = next((one for one in there if None not in _variables(one, environment)), there[0])
    number, count = _numbers(chosen, environment)
    if number is None or count is None:
        raise _no_share(f"{chosen.number if number is None else chosen.counts[0]} is not set")
    if number >= count:
        raise _no_share(_said(chosen, environment))
    for other in there if _TORCHRUN_ID not in environment or chosen is not _BY_HAND else ():
        if other is _SLURM and chosen is not _BY_HAND:
            continue
        pairs = zip(_numbers(other, environment), (number, count), strict=True)
        if any(told is not None and told != own for told, own in pairs):
            raise _no_share(
                f"{_said(other, environment)}, but {_said(chosen, environment)}",
                hint="Unset those that are not of this launch, or name the ranks.",
            )
    return number, count


def _variables(launcher: _Launcher, environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The names of a launcher's two variables, None for one that is not set."""
    number = launcher.number if launcher.number in environment else None
    return number, next((name for name in launcher.counts if name in environment), None)


def _numbers(launcher: _Launcher, environment: Mapping[str, str]) -> tuple[int | None, int | None]:
    """The values of a launcher's two variables. Raises UsageError for one that is no number."""
    number, count = (_count(name, environment) for name in _variables(launcher, environment))
    return number, count


def _said(launcher: _Launcher, environment: Mapping[str, str]) -> str:
    """The variables of a launcher as part of a sentence: `RANK is 3 and WORLD_SIZE 2`."""
    number, count = (name and f"{name} is {environment[name]}" for name in _variables(launcher, environment))
    return f"{number} and {count.replace(' is ', ' ')}" if number and count else str(number or count)


def _no_share(message: str, hint: str | None = None) -> UsageError:
    return UsageError.about("ranks", "auto", message, hint=hint)


def _count(name: str | None, environment: Mapping[str, str]) -> int | None:
    if name is None:
        return None
    text = environment[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise _no_share(f"{name} is {short(text)}, not a number")
    return int(text)
