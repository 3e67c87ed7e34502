"""The median of some rounds, with the least and the most: machines are noisy."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one quantity over all rounds."""

    median: float
    min: float
    max: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.min:.2f}..{self.max:.2f})"


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value."""
    some = list(values)
    return Spread(statistics.median(some), min(some), max(some))
