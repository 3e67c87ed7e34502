"""The numbers of the report's charts."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dsv4_shard.planning import BlockGrid
from dsv4_shard.reporting.content import ReportContent
from dsv4_shard.reporting.rank_contents import Column, Holding, LayerMap, LayerRow, RankBytes
from dsv4_shard.text.units import quotient, size

_RANK_KINDS = (
    ("experts", "routed experts"), ("split", "shared out"), ("whole", "whole on every rank"), ("padding", "padding"),
    ("other", "the engine's own"), ("free", "free"),
)  # fmt: skip

MAP_KINDS = (
    (Holding.EXPERTS, "whole experts, shared out"), (Holding.SPLIT, "cut over ranks"), (Holding.PADDED,
    "cut, with padding"),
    (Holding.WHOLE, "whole on every rank"), (Holding.BREAKS, "a rule breaks"),
)  # fmt: skip

_BARS = 64
"""Beyond this number of ranks, equal ranks are drawn together."""

_TICKS = 10


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def charts_of(report: ReportContent) -> dict[str, Any]:
    """Return the data of all charts, in the form that the scripts read."""
    return {
        "grids": [_grid(grid, is_placed=report.plan is not None and grid.fits) for grid in report.grids],
        "ranks": _rank_chart(report) if report.ranks else None,
        "map": _map_chart(report.layers) if report.layers else None,
    }


def _grid(grid: BlockGrid, is_placed: bool) -> dict[str, Any]:
    """Blocks as (start, stop, cut inside), cuts as (position, inside a block), placed parts as (start, stop, zeros)."""
    split = {cut.at // grid.block for cut in grid.even_cuts if cut.splits}
    starts = range(0, grid.size, grid.block)
    return {
        "title": f"cut evenly over {grid.group} {grid.ranks}",
        "placed": f"as placed: {_placed_as(grid)}",
        "sentence": _grid_sentence(grid),
        "size": grid.size,
        "kind": "whole" if grid.way == "whole" else "split",
        "holder": "ranks, each" if grid.way == "whole" else "part",
        "blocks": [(start, min(start + grid.block, grid.size), start // grid.block in split) for start in starts],
        "cuts": [(cut.at, cut.splits) for cut in grid.even_cuts],
        "shares": [(share.start, share.stop, share.padding) for share in grid.shares] if is_placed else [],
    }


def _grid_sentence(grid: BlockGrid) -> str:
    each = grid.size / grid.ranks
    cut = sum(cut.splits for cut in grid.even_cuts)
    inside = f"; {cut} of {grid.ranks - 1} cuts fall inside one" if cut else ""
    return capitalized(
        f"{grid.module}: {grid.axis} {grid.size}, {grid.blocks} {grid.unit} of {grid.block}. Cut evenly over "
        f"{grid.group} {grid.ranks}: {quotient(each)} each, which is {quotient(each, grid.block)} {grid.unit}{inside}."
    )


def _placed_as(grid: BlockGrid) -> str:
    each = grid.step // grid.block
    holders = grid.ranks // grid.parts
    return {
        "whole": f"each rank holds all {grid.blocks}",
        "pad": f"{each} on each, and {grid.padding // grid.block} of zeros at the end",
        "split": f"{each} in each of {grid.parts} parts" + (f", held by {holders} ranks each" if holders > 1 else ""),
    }[grid.way]


def kinds_of(ranks: tuple[RankBytes, ...]) -> list[tuple[str, str]]:
    """The kinds of bytes that some rank has."""
    return [(kind, words) for kind, words in _RANK_KINDS if any((getattr(rank, kind) or 0) for rank in ranks)]


def _rank_chart(report: ReportContent) -> dict[str, Any]:
    bars, world = [], report.ranks[-1].last + 1
    for rank in report.ranks:
        row = asdict(rank) | {"free": max(0, rank.free or 0)}
        if world <= _BARS:
            bars += [row | {"label": f"rank {number}"} for number in range(rank.first, rank.last + 1)]
        else:
            bars.append(row | {"label": f"ranks {rank.first}-{rank.last}"})
    memory = report.plan.memory if report.plan else None
    return {
        "bars": bars,
        "kinds": kinds_of(report.ranks),
        "margin": 16 + 7 * max(len(bar["label"]) for bar in bars),
        "capacity": memory.capacity if memory else None,
    }


def _map_chart(layers: LayerMap) -> dict[str, Any]:
    totals = [0] * len(layers.columns)
    for cell in layers.cells:
        totals[cell.column] += cell.nbytes
    every = max(1, len(layers.rows) // _TICKS)
    return {
        "rows": [row.title for row in layers.rows],
        "titles": [row.title if row.number is None else f"layer {row.title}" for row in layers.rows],
        "columns": [
            {"kind": column.kind, "title": f"{_name(column, layers)}: {_placed(column.kind, column.placement)}"
             + (f", {size(total)}" if total else "")}
            for column, total in zip(layers.columns, totals, strict=True)
        ],
        "cells": [(cell.row, cell.column, cell.nbytes, cell.padding) for cell in layers.cells],
        "ticks": [
            (at, row.title) for at, row in enumerate(layers.rows) if row.number is not None and row.number % every == 0
        ],
    }  # fmt: skip


def _name(column: Column, layers: LayerMap) -> str:
    """Name of the module, with its tensors if others of the module are placed differently."""
    alone = sum(other.module is column.module for other in layers.columns) == 1
    return str(column.module) if alone else f"{column.module} ({_roles(column)})"


def _roles(column: Column) -> str:
    return ", ".join(dict.fromkeys(role.rpartition(".")[2] for role in column.roles))


def _placed(kind: Holding, placement: str) -> str:
    return "a rule breaks" if kind is Holding.BREAKS else "whole on every rank" if kind is Holding.WHOLE else placement


def map_rows(layers: LayerMap) -> Iterator[dict[str, Any]]:
    """Yield the map's columns, with the draft model's part separate: the plan's bytes per rank leave that out."""
    for number, column in enumerate(layers.columns):
        cells = sorted((cell for cell in layers.cells if cell.column == number), key=lambda cell: cell.row)
        for is_draft in (False, True):
            members = [cell for cell in cells if layers.rows[cell.row].is_draft == is_draft]
            if members:
                yield {
                    "module": column.module,
                    "placement": _placed(column.kind, column.placement),
                    "roles": _roles(column),
                    "layers": _spans([layers.rows[cell.row] for cell in members]),
                    "nbytes": None if column.kind is Holding.BREAKS else sum(cell.nbytes for cell in members),
                }


def _spans(rows: list[LayerRow]) -> str:
    """Titles of rows with runs of numbers as ranges: `model, 0-60, MTP 0`; every second number stays a list."""
    spans: list[list[LayerRow]] = []
    for row in rows:
        before = spans[-1][-1].number if spans else None
        if before is not None and row.number == before + 1:
            spans[-1] = [spans[-1][0], row]
        else:
            spans.append([row])
    return ", ".join("-".join(row.title for row in span) for span in spans)
