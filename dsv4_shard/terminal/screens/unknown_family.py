"""Prints the result of `inspect` for an unknown family: names, findings, divisibility."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dsv4_shard.inspection import whole_sizes
from dsv4_shard.terminal.screens.known_family import show_findings
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import heading, item, title
from dsv4_shard.text.units import counted, quotient, size

if TYPE_CHECKING:
    from dsv4_shard.inspection import Axis, QuantizedRow, UnknownIdentity, UnknownInspection


def show_unknown(console: Console, inspection: "UnknownInspection", *, details: bool = False) -> None:
    """Show at which TP sizes the weights divide; with `details`, every tensor and every axis too."""
    _show_unknown_identity(console, inspection.identity)
    _show_answer(console, inspection)
    console.print()
    show_findings(console, inspection.findings, "every quantized weight has its scale, and every scale fits")
    if details:
        _show_templates(console, inspection)
        _show_axes(console, inspection.quantized)
    item(console, inspection.not_known)
    if not details:
        item(console, "More: --details (tensors by name, both axes of every weight)", "dim", indent=0)


def _show_answer(console: Console, inspection: "UnknownInspection") -> None:
    """Show at which sizes all axes that engines cut divide, and the axes that do not, once if they are alike."""
    heading(console, whole_sizes(inspection) or "No weight has scales along an axis that engines are known to cut")
    labels = _labels(inspection.quantized)
    cut = [(labels[row.template], axis) for row in inspection.quantized for axis in row.axes if axis.cut]
    if all(share.whole for _, axis in cut for share in axis.shares):
        return
    tps = [share.tp for share in cut[0][1].shares]
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for label, axis in cut:
        if not all(share.whole for share in axis.shares):
            key = (_axis_title(axis).removesuffix("*"), tuple(cell.plain for cell in _axis_cells(axis)))
            alike.setdefault(key, []).append(label)
    table = Table("does not divide (!)", *map(str, tps), right=range(1, len(tps) + 1))
    for (axis_title, cells), names in alike.items():
        for name in names:
            table.add(name, *("" for _ in tps))
        table.add(f"  {axis_title}", *(Text(cell, style="red" if cell.endswith("!") else "") for cell in cells))
    table.show(console)


def _show_templates(console: Console, inspection: "UnknownInspection") -> None:
    heading(console, "Tensors by name ({N} for a layer, {E} for an expert)")
    table = Table("name", "tensors", "bytes", "dtype", "scale for", right=(1, 2))
    for row in inspection.templates:
        table.add(row.template, f"{row.tensors:,}", size(row.bytes), row.dtype, row.scales or "")
    table.show(console)


def _show_unknown_identity(console: Console, it: "UnknownIdentity") -> None:
    revision = f" @ {it.revision[:12]}" if it.revision else ""
    title(console, it.label + revision)
    model_type = f" ({it.model_type})" if it.model_type not in (None, it.family) else ""
    held = f"{counted(it.tensors, 'tensor')} in {counted(it.files, 'file')}, {size(it.bytes)}"
    item(console, f"{it.family}{model_type}, a family that is not known: {held}")
    sizes = (
        (it.layers, "{} layers"),
        (it.hidden_size, "hidden {}"),
        (it.attention_heads, "{} heads"),
        (it.key_value_heads, "{} key-value heads"),
        (it.routed_experts, "{} routed experts"),
        (it.intermediate_size, "intermediate size {}"),
        (it.declared_block and "×".join(map(str, it.declared_block)), "blocks of {} declared"),
    )
    said = [form.format(value) for value, form in sizes if value is not None]
    if said:
        item(console, ", ".join(said))


def _show_axes(console: Console, rows: "tuple[QuantizedRow, ...]") -> None:
    """Show both axes of every quantized weight below its name, in red if the axis that engines cut does not divide."""
    with_axes = [row for row in rows if row.axes]
    if not with_axes:
        return
    tps = [share.tp for share in with_axes[0].axes[0].shares]
    heading(console, "Whole units per rank, by TP (blocks where scales are of blocks)")
    table = Table("weight", *(str(tp) for tp in tps), right=range(1, len(tps) + 1))
    labels = _labels(rows)
    for row in with_axes:
        table.add(labels[row.template], *("" for _ in tps))
        for axis in row.axes:
            table.add(f"  {_axis_title(axis)}", *_axis_cells(axis))
    table.show(console)
    item(console, "* cut, as far as the name tells; ! does not divide into whole units", "dim")


def _axis_title(axis: "Axis") -> str:
    parts = f"{axis.parts}×" if axis.parts > 1 else ""
    unit = f" /{axis.unit}" if axis.unit > 1 else ""
    return f"{parts}{axis.size} {axis.axis}{unit}{'*' if axis.cut else ''}"


def _axis_cells(axis: "Axis") -> Iterable[Text]:
    for share in axis.shares:
        number = quotient(share.units_per_rank)
        yield Text(number if share.whole else f"{number}!", style="red" if axis.cut and not share.whole else "")


def _labels(rows: "tuple[QuantizedRow, ...]") -> dict[str, str]:
    """Names without their common part, if they stay different without it."""
    short = {
        row.template: row.template.partition("layers.{N}.")[2].removesuffix("_packed").removesuffix(".weight")
        for row in rows
    }
    counts = Counter(short.values())
    return {name: label if label and counts[label] == 1 else name for name, label in short.items()}
