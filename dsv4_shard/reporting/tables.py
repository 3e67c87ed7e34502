"""The tables of a checkpoint: what it holds, and which TP sizes divide it into whole units."""

from collections.abc import Iterator
from typing import NamedTuple

from dsv4_shard.inspection import DimensionPart, Inspection, UnknownInspection
from dsv4_shard.text.units import quotient, size


class HeldTable(NamedTuple):
    """What the checkpoint holds; `head` is (name, whether it is a number)."""

    head: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]


def held_by(inspection: Inspection | UnknownInspection) -> HeldTable:
    """Return the tensors of a checkpoint: by role, or by name if the family is unknown."""
    counted = (("tensors", True), ("bytes", True))
    if isinstance(inspection, UnknownInspection):
        return HeldTable(
            (("name", False), ("dtype", False), ("scales", False), *counted),
            tuple((row.template, row.dtype, row.scales or "", f"{row.tensors:,}", size(row.bytes))
                  for row in inspection.templates),
        )  # fmt: skip
    return HeldTable(
        (("module", False), ("part", False), ("dtype", False), ("block", False), *counted),
        tuple((row.module, row.part, row.dtype, row.block or "", f"{row.tensors:,}", size(row.bytes))
              for row in inspection.roles),
    )  # fmt: skip


class DivisionRow(NamedTuple):
    """A dimension with its units per rank at each TP: (TP, number, whether it is whole)."""

    name: str
    parts: tuple[tuple[int, str, bool], ...]


def divisions(inspection: Inspection | UnknownInspection) -> Iterator[DivisionRow]:
    """Yield the dimensions that engines cut; of an unknown weight both axes, unless its name tells which."""
    if isinstance(inspection, UnknownInspection):
        for weight in inspection.quantized:
            for axis in [axis for axis in weight.axes if axis.cut] or weight.axes:
                yield _divides(f"{weight.template}: {axis.axis} {axis.size:,}", axis.unit, axis.shares)
    else:
        for row in inspection.dimensions:
            yield _divides(f"{row.name}: {row.size:,}", row.unit, row.shares)


def _divides(name: str, unit: int, shares: tuple[DimensionPart, ...]) -> DivisionRow:
    blocks = f" in blocks of {unit}" if unit > 1 else ""
    parts = tuple((share.tp, quotient(share.units_per_rank), share.whole) for share in shares)
    return DivisionRow(name + blocks, parts)
