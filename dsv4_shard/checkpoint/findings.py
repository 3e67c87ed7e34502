"""Findings about a checkpoint, their severity, and abbreviated lists of names for their messages."""

from dataclasses import dataclass
from enum import StrEnum

from dsv4_shard.text.sanitize import short_name

_NAMED_AT_ONCE = 3
"""Names that a message lists before it only counts the rest."""


class Severity(StrEnum):
    """Severity of a finding: an error stops planning, a warning may matter, a note only informs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the user should know about the checkpoint. `code` is stable across versions."""

    severity: Severity
    code: str
    message: str


def defect(code: str, message: str) -> Finding:
    """Return a finding that stops planning."""
    return Finding(Severity.ERROR, code, message)


def some(names: list[str], count: int | None = None) -> str:
    """Return the first three of `names`, escaped, and the number of the others.

    `count` is the total number if `names` does not list all.
    """
    shown = ", ".join(map(short_name, names[:_NAMED_AT_ONCE]))
    more = (len(names) if count is None else count) - min(len(names), _NAMED_AT_ONCE)
    return shown + (f" and {more:,} more" if more > 0 else "")
