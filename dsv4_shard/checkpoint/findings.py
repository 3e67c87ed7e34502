"""Finding, Severity, and how names are abbreviated in messages."""

from dataclasses import dataclass
from enum import StrEnum

from dsv4_shard.text.sanitize import short_name

_NAMED_AT_ONCE = 3
"""How many tensors or files an error names before it only counts."""


class Severity(StrEnum):
    """How much a finding matters: an error stops planning, a warning may matter, a note is for the record."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the checkpoint that its user should know. `code` is stable across versions."""

    severity: Severity
    code: str
    message: str


def defect(code: str, message: str) -> Finding:
    """A finding that stops planning."""
    return Finding(Severity.ERROR, code, message)


def some(names: list[str], count: int | None = None) -> str:
    """The first few of `names`, and how many more there are (of `count`, if not all are named); escaped."""
    shown = ", ".join(map(short_name, names[:_NAMED_AT_ONCE]))
    more = (len(names) if count is None else count) - min(len(names), _NAMED_AT_ONCE)
    return shown + (f" and {more:,} more" if more > 0 else "")
