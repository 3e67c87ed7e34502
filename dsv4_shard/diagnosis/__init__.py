"""An engine's error message or log → the rule that broke, in numbers, and how to fix it."""

from dsv4_shard.diagnosis.cases import KnownModel
from dsv4_shard.diagnosis.explanation import Case, Explanation, explain
from dsv4_shard.diagnosis.log_scan import lines_of

__all__ = [
    "Case",
    "Explanation",
    "KnownModel",
    "explain",
    "lines_of",
]
