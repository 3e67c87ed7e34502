"""Prints the result of `plan --compare`: the differences between two plans."""

from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.terminal.shell_commands import to_copy
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import heading, item, title
from dsv4_shard.text.units import size

if TYPE_CHECKING:
    from dsv4_shard.planning import Difference, PlacementDifference, PlanComparison


def show_comparison(console: Console, comparison: "PlanComparison") -> None:
    """Show the differences between two plans, those of the checkpoints first."""
    if comparison.same:
        title(console, f"{comparison.a} and {comparison.b}: the same plan")
        return
    title(console, f"A: {comparison.a}")
    title(console, f"B: {comparison.b}")
    if comparison.checkpoint:
        heading(console, "Not the same checkpoint")
        for line in comparison.checkpoint:
            item(console, line, "yellow")
    _show_differences(console, "Asked for", comparison.request)
    _show_differences(console, "Comes to", comparison.deployment)
    for name, verdict in zip("AB", comparison.verdicts, strict=False):
        heading(console, f"{name} {verdict.verdict}")
        for line in (*verdict.breaches, *verdict.changes):
            item(console, line, "" if verdict.verdict.is_good else "red")
    placements, nbytes = comparison.placements, comparison.bytes_per_rank
    if placements and (all(row.a is None for row in placements) or all(row.b is None for row in placements)):
        only = "A" if placements[0].b is None else "B"
        heading(console, f"Placement and bytes are only in {only}")
        placements = nbytes = ()
    if placements:
        heading(console, "Placement")
        table = Table("module", "A", "B")
        for cells in _placement_rows(placements):
            table.add(*cells)
        table.show(console)
    if nbytes:
        heading(console, "Bytes per GPU (the fullest)")
        table = Table("", "A", "B", "B - A", right=(1, 2, 3))
        for row in nbytes:
            sign = "-" if row.difference < 0 else "+"
            table.add(row.name, size(row.a), size(row.b), sign + size(abs(row.difference)))
        table.show(console)
    _show_differences(console, "Environment", comparison.environment)
    if all(comparison.commands):
        _show_differences(console, "Launch", comparison.options)
    for name, commands in zip("AB", comparison.commands, strict=False):
        if commands:
            heading(console, f"Commands of {name}")
        for command in commands:
            to_copy(console, command)
    if comparison.only_rest:
        _show_differences(console, "What differs", comparison.rest)
    elif comparison.rest:
        console.print()
        item(console, f"{len(comparison.rest)} more, in what follows from these: --json lists them", "dim")


def _show_differences(console: Console, title: str, differences: "tuple[Difference, ...]") -> None:
    if not differences:
        return
    heading(console, title)
    table = Table("", "A", "B")
    for row in differences:
        table.add(row.name, *("-" if value is None else str(value) for value in (row.a, row.b)))
    table.show(console)


def _placement_rows(rows: "tuple[PlacementDifference, ...]") -> list[tuple[str, str, str]]:
    """Roles of a module with the same difference, in one row."""
    merged: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        module = f"{row.module}{' (draft)' if row.part_of == 'draft' else ''}"
        merged.setdefault((module, row.a or "-", row.b or "-"), []).append(row.role.rpartition(".")[2])
    return [(f"{module}: {', '.join(dict.fromkeys(roles))}", a, b) for (module, a, b), roles in merged.items()]
