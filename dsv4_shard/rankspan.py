"""Ranks as people write them: `0-7`, or `0,2,4`."""

from collections.abc import Iterable
from itertools import groupby

from dsv4_shard.digests import digest_of
from dsv4_shard.errors import UsageError

_SPAN_IN_NAME = 40


def parse_ranks(text: str) -> tuple[int, ...]:
    """The ranks that `text` names, in order. Raises UsageError."""
    ranks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)) or (dash and int(last) < int(first)):
            raise UsageError(f"--ranks {text!r}: not a list of ranks", hint="Write 0-7, or 0,2,4.")
        ranks.update(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(ranks))


def span_of(ranks: Iterable[int]) -> str:
    """The shortest text that `parse_ranks` reads as these ranks."""
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(sorted(ranks)), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def share_name(ranks: Iterable[int]) -> str:
    """`span_of` in the name of a folder: another text for any other ranks, and not too long for a file system."""
    span = span_of(ranks)
    return span if len(span) <= _SPAN_IN_NAME else f"{span[:_SPAN_IN_NAME]}-{digest_of(span.encode())}"


def say_ranks(ranks: Iterable[int]) -> str:
    """As `span_of`, in a sentence."""
    span = span_of(ranks)
    return f"rank {span}" if span.isdecimal() else f"ranks {span}" if span else "no ranks"
