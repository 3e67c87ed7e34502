"""The document that `inspect` returns, for known and for unknown families."""

from dsv4_shard.inspection.axes import Axis
from dsv4_shard.inspection.known_family import (
    DEFAULT_TPS,
    DimensionPart,
    DimensionRow,
    Inspection,
    InspectionFinding,
    MatrixCell,
    inspect,
)
from dsv4_shard.inspection.unknown_family import QuantizedRow, UnknownIdentity, UnknownInspection, inspect_unknown
from dsv4_shard.inspection.whole_sizes import whole_sizes

__all__ = [
    "DEFAULT_TPS",
    "Axis",
    "DimensionPart",
    "DimensionRow",
    "Inspection",
    "InspectionFinding",
    "MatrixCell",
    "QuantizedRow",
    "UnknownIdentity",
    "UnknownInspection",
    "inspect",
    "inspect_unknown",
    "whole_sizes",
]
