"""The axes of a weight with scales: their units, and which of them engines cut, as far as the name shows."""

from collections.abc import Iterator
from typing import Literal

from dsv4_shard.inspection.known_family import DimensionPart
from dsv4_shard.inspection.scale_pairs import Scaled, Sharing
from dsv4_shard.text.document import Document

ROWS_CUT = frozenset(
    {"gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "w13", "q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj"}
)

COLUMNS_CUT = frozenset({"down_proj", "w2", "o_proj", "wo", "out_proj"})

TWO_IN_ONE = frozenset({"gate_up_proj", "w13"})
"""Gate and up in one tensor: a rank takes a part of each, so each must divide."""

_MODULE_ENDINGS = (".weight_packed", ".weight", "_blocks")

AxisName = Literal["rows", "columns"]


class Axis(Document):
    """One axis of a weight: `size` elements in units of `unit` elements, in each of `parts` matrices that are stored as
    one.

    `scale_size` is the scale's size along the axis, for all parts; null if the scale has no such axis. `cut` tells
    whether engines cut this axis, as far as the name shows.
    """

    axis: AxisName
    size: int
    parts: int
    unit: int
    scale_size: int | None
    cut: bool
    shares: tuple[DimensionPart, ...]


def axes_of(scaled: Scaled, hidden: int | None, tps: tuple[int, ...]) -> Iterator[Axis]:
    """Yield both axes of a weight at each TP; none if its scales are unclear. `hidden` is the hidden size."""
    if scaled.sharing is Sharing.UNCLEAR or scaled.scale_sizes is None:
        return
    module = module_of(scaled.kind.template)
    cut = _cut(module, scaled.shape, hidden)
    units = scaled.block or (1, scaled.packed)
    names: tuple[AxisName, AxisName] = ("rows", "columns")
    for number, name in enumerate(names):
        size, scale = scaled.shape[number - 2], scaled.scale_sizes[number]
        parts = 2 if module in TWO_IN_ONE and name == cut and size % 2 == 0 else 1
        yield Axis(
            axis=name,
            size=size // parts,
            parts=parts,
            unit=units[number],
            scale_size=scale if scaled.sharing is Sharing.BLOCK or scale > 1 else None,
            cut=name == cut,
            shares=tuple(_share(size, parts * tp, units[number], tp) for tp in tps),
        )


def _share(size: int, ways: int, unit: int, tp: int) -> DimensionPart:
    """Units per rank of an axis that is cut `ways`. TP 1 is always whole, even if the last block is not full.

    The scale's axis has `ceil(size / unit)` entries, so it divides wherever the weight's does.
    """
    return DimensionPart(tp=tp, units_per_rank=size / (ways * unit), whole=tp == 1 or size % (ways * unit) == 0)


def module_of(template: str) -> str:
    """The last part of a weight's name that identifies the module."""
    for ending in _MODULE_ENDINGS:
        if template.endswith(ending):
            template = template.removesuffix(ending)
            break
    return template.rpartition(".")[2]


def _cut(module: str, shape: tuple[int, ...], hidden: int | None) -> AxisName | None:
    """The axis that engines cut, if the name shows it.

    Stacked experts may be transposed; the hidden axis is never cut.
    """
    if module not in ROWS_CUT | COLUMNS_CUT:
        return None
    *experts, rows, columns = shape
    if experts and (rows == hidden) != (columns == hidden):
        return "columns" if rows == hidden else "rows"
    return "rows" if module in ROWS_CUT else "columns"
