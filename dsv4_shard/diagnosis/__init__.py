"""An engine's error message or log → the rule that broke, in numbers, and how to fix it."""

from dsv4_shard.diagnosis.document import Case, Explanation
from dsv4_shard.diagnosis.explanation import explain
from dsv4_shard.diagnosis.known_model import KnownModel, OtherFamily
from dsv4_shard.diagnosis.log_scan import lines_of

__all__ = [
    "Case",
    "Explanation",
    "KnownModel",
    "OtherFamily",
    "explain",
    "lines_of",
]
