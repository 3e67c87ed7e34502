"""`Verdict`: the four answers to "does it run?", in the words that every command, document and page uses."""

from enum import StrEnum


class Verdict(StrEnum):
    """Whether an engine runs a layout.

    Attributes:
        RUNS: With the engine's defaults.
        CHANGED: With options or variables that differ from the engine's defaults.
        FAILS: A rule breaks: the engine stops, or computes nonsense.
        UNVERIFIED: Unknown: the engine's own code was not run with such a layout. Bytes are arithmetic and still shown.
    """

    RUNS = "runs"
    CHANGED = "runs with changes"
    FAILS = "does not run"
    UNVERIFIED = "not verified"

    @property
    def is_good(self) -> bool:
        """Whether the layout runs."""
        return self in (Verdict.RUNS, Verdict.CHANGED)
