"""The numbers of the report's charts: boxes with positions in percent, which the style sheet draws."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dsv4_shard.catalog.rank_ranges import span_of
from dsv4_shard.models import Module
from dsv4_shard.planning import BlockGrid, Plan, PlanModule
from dsv4_shard.reporting.colours import DRAFT, KINDS, REST, kind_of
from dsv4_shard.reporting.rank_contents import LayerBytes, RankBytes
from dsv4_shard.text.units import counted, gib, quotient, size

_MOST_LINES = 400
"""Largest number of blocks or cuts that is drawn: beyond it, lines would touch."""

_NUMBERED = 16
"""Largest number of parts that are numbered one by one."""

_TICKS = 6

_MEANING = {colour.name: colour.meaning for colour in KINDS} | {"padding": "zeros for padding", "free": "free"}


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle: the name of its colour or pattern, its place and size in percent of the chart, and its words."""

    kind: str
    at: float
    size: float
    words: str


# --- what a rank holds -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankBar:
    """The memory of equal ranks. `capacity` is where the GPU's memory ends, in percent; None if no GPU is named."""

    title: str
    total: str
    boxes: tuple[Box, ...]
    capacity: float | None


def rank_bars(ranks: tuple[RankBytes, ...], capacity: int | None) -> tuple[RankBar, ...]:
    """Return a bar for each group of equal ranks, all to one scale."""
    full = max([*(rank.weights for rank in ranks), capacity or 0, 1])
    return tuple(_rank_bar(rank, capacity, full, len(ranks) == 1) for rank in ranks)


def _rank_bar(rank: RankBytes, capacity: int | None, full: int, is_only: bool) -> RankBar:
    number = rank.last - rank.first + 1
    title = f"rank {rank.first}" if number == 1 else f"ranks {span_of(range(rank.first, rank.last + 1))}"
    if is_only:
        title = "the only rank" if number == 1 else f"all {number} ranks"
    parts = [*((kind, rank.kinds.get(kind, 0)) for kind in _MEANING), ("padding", rank.padding)]
    parts = [(kind, nbytes) for kind, nbytes in parts if nbytes]
    if rank.free is not None and rank.free > 0:
        parts.append(("free", rank.free))
    starts = itertools.accumulate((nbytes for _, nbytes in parts), initial=0)
    boxes = tuple(
        Box(kind, 100 * start / full, 100 * nbytes / full, f"{_MEANING[kind]}: {gib(nbytes)}")
        for (kind, nbytes), start in zip(parts, starts, strict=False)
    )
    total = f"{gib(rank.weights)} of weights"
    if rank.free is not None:
        total += f", {gib(rank.free)} free" if rank.free >= 0 else f", {gib(-rank.free)} short"
    return RankBar(title, total, boxes, 100 * capacity / full if capacity else None)


def legend(ranks: Iterable[RankBytes]) -> list[tuple[str, str]]:
    """The kinds of bytes that some rank has: colour and meaning."""
    ranks = tuple(ranks)
    found = [(kind, words) for kind, words in _MEANING.items() if any(rank.kinds.get(kind) for rank in ranks)]
    found += [("padding", _MEANING["padding"])] * any(rank.padding for rank in ranks)
    return found + [("free", _MEANING["free"])] * any((rank.free or 0) > 0 for rank in ranks)


# --- by module -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModuleBar:
    """Bytes of a module on the heaviest rank, as far as it is placed alike.

    `size` is in binary, `decimal` in decimal units. `width` and `padding` are in percent of the largest row.
    """

    name: str
    placement: str
    kind: str
    size: str
    decimal: str
    width: float
    padding: float


def module_bars(plan: Plan) -> tuple[ModuleBar, ...]:
    """Return the plan's modules, the largest first; then the draft model, which is not part of their sum."""
    totals = plan.totals
    if totals is None:
        return ()
    rows = [(*row, kind_of(module)) for module, row in _module_rows(plan)]
    rows.sort(key=lambda row: -row[2])
    if totals.other_target_bytes_per_rank:
        rows.append(("constants", "the engine's own", totals.other_target_bytes_per_rank, 0, REST))
    if totals.draft_bytes_per_rank:
        rows.append(("MTP draft model", "beside the target model", totals.draft_bytes_per_rank, 0, DRAFT))
    most = max((nbytes for _, _, nbytes, _, _ in rows), default=1) or 1
    return tuple(
        ModuleBar(
            name, placement, kind, gib(nbytes), size(nbytes), 100 * (nbytes - padding) / most, 100 * padding / most
        )
        for name, placement, nbytes, padding, kind in rows
    )


def _module_rows(plan: Plan) -> Iterator[tuple[Module, tuple[str, str, int, int]]]:
    """Yield module and (name, placement, bytes, padding) for the roles of a module that are placed alike."""
    held: dict[tuple[Module, str], list[PlanModule]] = {}
    for row in plan.modules:
        if row.part_of == "target":
            held.setdefault((row.module, row.placement), []).append(row)
    several = {module for module, _ in held if sum(module is other for other, _ in held) > 1}
    for (module, placement), members in held.items():
        name = f"{module}: {_roles(members)}" if module in several else str(module)
        nbytes = sum(member.bytes_per_rank for member in members)
        padding = sum(member.padding_per_rank for member in members)
        yield module, (name, placement, nbytes, padding)


def _roles(members: list[PlanModule]) -> str:
    roles = [member.role.rpartition(".")[2] for member in members]
    return ", ".join(roles[:3]) + (f" and {len(roles) - 3} more" if len(roles) > 3 else "")


# --- by layer --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerColumn:
    """A layer's bytes, stacked: `at` of a box is its bottom."""

    title: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Neighbouring columns: the layers, or a part outside of them. `ticks` are (position in percent, label)."""

    title: str
    columns: tuple[LayerColumn, ...]
    ticks: tuple[tuple[float, str], ...]

    @property
    def is_layers(self) -> bool:
        return self.title == "layer"


@dataclass(frozen=True, slots=True)
class LayerChart:
    """The model by layers; `most` is the value at the top."""

    most: str
    groups: tuple[LayerGroup, ...]


def layer_chart(layers: tuple[LayerBytes, ...]) -> LayerChart:
    """Return the chart of a deployment's layers. The draft model's blocks stand apart."""
    most = max(sum(layer.kinds.values()) for layer in layers) or 1
    groups = []
    for _, members in itertools.groupby(layers, lambda layer: layer.row.stage):
        rows = list(members)
        titles = [row.row.title for row in rows]
        name = "layer" if titles[0].isdecimal() else f"{titles[0]}-{rows[-1].row.layer}" if rows[1:] else titles[0]
        words = "layer {}" if name == "layer" else "{}"
        columns = tuple(_column(words.format(row.row.title), row, most) for row in rows)
        groups.append(LayerGroup(name, columns, tuple(_ticks(titles)) if name == "layer" else ()))
    return LayerChart(gib(most), tuple(groups))


def _column(title: str, layer: LayerBytes, most: int) -> LayerColumn:
    parts = [(kind, layer.kinds[kind]) for kind in _MEANING if layer.kinds.get(kind)]
    starts = itertools.accumulate((nbytes for _, nbytes in parts), initial=0)
    return LayerColumn(
        title,
        tuple(
            Box(kind, 100 * start / most, 100 * nbytes / most, f"{title}, {_MEANING[kind]}: {gib(nbytes)}")
            for (kind, nbytes), start in zip(parts, starts, strict=False)
        ),
    )


def _ticks(titles: list[str]) -> Iterator[tuple[float, str]]:
    """Yield centre and title of every so many columns, round numbers apart."""
    step = next((step for step in (1, 5, 10, 20, 50, 100) if len(titles) <= step * _TICKS * 1.5), len(titles))
    for at, title in enumerate(titles):
        if int(title) % step == 0:
            yield 100 * (at + 0.5) / len(titles), title


# --- blocks and cuts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GridChart:
    """An axis in blocks, with the cuts of equal parts, and below it the parts as placed.

    `cuts` are positions in percent, and `extent` the size without padding. `placed` is empty unless the parts are
    placed in a way that fits. Numbers of ranks, of units and of placed parts are (centre, number).
    """

    sentence: str
    title: str
    size: str
    extent: float
    blocks: tuple[Box, ...]
    cuts: tuple[float, ...]
    rank_numbers: tuple[tuple[float, str], ...]
    unit_numbers: tuple[tuple[float, str], ...]
    placed_as: str
    placed: tuple[Box, ...]
    part_numbers: tuple[tuple[float, str], ...]


def grid_chart(grid: BlockGrid, is_placed: bool) -> GridChart:
    """Return the chart of an axis; `is_placed`: the plan places it so, and does not only ask for it."""
    extent = grid.size + grid.padding if is_placed else grid.size
    split = {cut.at // grid.block for cut in grid.even_cuts if cut.splits}
    starts = range(0, grid.size, grid.block) if grid.blocks <= _MOST_LINES else ()
    stops = ((number, start, min(start + grid.block, grid.size)) for number, start in enumerate(starts))
    kind = kind_of(grid.module)
    blocks = tuple(
        Box("cut" if number in split else kind, 100 * start / extent, 100 * (stop - start) / extent,
            f"{_one(grid)} {number}" + (f": elements {start} to {stop - 1}" if grid.block > 1 else "")
            + (", cut inside" if number in split else ""))
        for number, start, stop in stops
    )  # fmt: skip
    ranks = grid.ranks if grid.ranks <= _MOST_LINES else 0
    places = tuple(_places(grid, kind, extent)) if is_placed and grid.fits else ()
    return GridChart(
        sentence=_grid_sentence(grid),
        title=f"cut evenly over {grid.group} {grid.ranks}: {quotient(grid.size / grid.ranks, grid.block)} "
              f"{grid.unit or grid.axis} each; above: ranks, below: {grid.unit or grid.axis}",
        size=f"{grid.size:,} {(grid.unit and 'elements') or grid.axis}",
        extent=100 * grid.size / extent,
        blocks=blocks or (Box("cut" if split else kind, 0, 100 * grid.size / extent, grid.axis),),
        cuts=tuple(100 * number * grid.size / grid.ranks / extent for number in range(1, ranks)),
        rank_numbers=_numbers(grid.ranks, grid.size / grid.ranks / extent),
        unit_numbers=_numbers(grid.blocks, grid.block / extent),
        placed_as=f"as placed: {_placed_as(grid)}",
        placed=places,
        part_numbers=_numbers(grid.parts, grid.step / extent) if places else (),
    )  # fmt: skip


def _one(grid: BlockGrid) -> str:
    """One unit of the axis: a block, a tile, or one of what its name says."""
    return (grid.unit or grid.axis).removesuffix("s")


def _places(grid: BlockGrid, kind: str, extent: int) -> Iterator[Box]:
    holder = "all ranks" if grid.way == "whole" else "part {}"
    at = 0
    for number, share in enumerate(grid.shares):
        words, held = holder.format(number), share.stop - share.start
        if held:
            yield Box(kind, 100 * at / extent, 100 * held / extent,
                      f"{words}: elements {share.start} to {share.stop - 1}")  # fmt: skip
        if share.padding:
            yield Box("padding", 100 * (at + held) / extent, 100 * share.padding / extent,
                      f"{words}: {share.padding} elements of zeros")  # fmt: skip
        at += held + share.padding


def _numbers(count: int, width: float) -> tuple[tuple[float, str], ...]:
    """Return centre and number of equal parts, not closer than readable; none for a single part."""
    every = -(-count // _NUMBERED)
    return tuple((100 * (number + 0.5) * width, str(number)) for number in range(0, count, every) if count > 1)


def _grid_sentence(grid: BlockGrid) -> str:
    each = grid.size / grid.ranks
    cut = sum(cut.splits for cut in grid.even_cuts)
    unit = grid.unit or "whole units"
    if grid.block == 1:
        inside = f": {cut} of {grid.ranks - 1} cuts fall inside one of them" if cut else ""
        return capitalized(f"{grid.module}: {grid.axis} {grid.size} over {grid.group} {grid.ranks} is {quotient(each)} "
                           f"each{inside}.")  # fmt: skip
    inside = f"; {cut} of {grid.ranks - 1} cuts fall inside one" if cut else ""
    return capitalized(
        f"{grid.module}: {grid.axis} {grid.size} is {grid.blocks} {unit} of {grid.block}. Cut evenly over "
        f"{grid.group} {grid.ranks}, each part has {quotient(each)}, which is {quotient(each, grid.block)} "
        f"{unit}{inside}."
    )


def _placed_as(grid: BlockGrid) -> str:
    each = grid.step // grid.block
    holders = grid.ranks // grid.parts
    return {
        "whole": f"every rank holds all {grid.blocks} {grid.unit}",
        "pad": f"{each} per rank, and {grid.padding // grid.block} of zeros at the end",
        "split": f"{each} in each of {counted(grid.parts, 'part')}"
        + (f", held by {holders} ranks each" if holders > 1 else ""),
    }[grid.way]


def failing_grids(plan: Plan) -> tuple[BlockGrid, ...]:
    """The axes that the plan cannot divide: into whole blocks, or at all; in the order of its breaches."""
    checks = {(check.rule, check.module): check for check in plan.checks if not check.holds}
    found = (checks.get((breach.rule, breach.module)) for breach in plan.breaches if breach.module is not None)
    return tuple(
        BlockGrid(check.module, check.size_name, check.size, check.unit, check.unit_name, check.parts_name,
                  check.parts, check.parts, "split")
        for check in dict.fromkeys(filter(None, found))
    )  # fmt: skip
