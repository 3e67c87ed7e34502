"""The grid of verdicts by number of GPUs and engine, with its reasons as numbered notes."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from dsv4_shard.catalog.gpus import GPUS, gpu_title
from dsv4_shard.engines import Verdict, find_engine
from dsv4_shard.inspection import MatrixCell
from dsv4_shard.planning import MEMORY_RULE
from dsv4_shard.reporting.verdicts import Shown, of_cell, shown
from dsv4_shard.text.units import gib

_GIB = 1 << 30

_LARGEST = max(gpu.memory for gpu in GPUS.values())

_SIGNS = ("✓", "✓*", "✗", "✗*", "?")
"""The order of the legend."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class GridCell:
    """A cell: verdict, GiB of weights per GPU, the layout if TP alone does not run, and the numbers of its notes."""

    engine: str
    verdict: Shown
    weight: str | None
    layout: str | None
    notes: tuple[int, ...]
    is_asked: bool


@dataclass(frozen=True, slots=True)
class GridRow:
    """Numbers of GPUs with the same cell for each engine; or with one sentence, where the weights are too large."""

    gpus: str
    cells: tuple[GridCell, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Grid:
    """The rows, and the notes: each has the texts that differ in numbers only. `legend` has the verdicts in use."""

    engines: tuple[str, ...]
    rows: tuple[GridRow, ...]
    notes: tuple[tuple[str, ...], ...]
    legend: tuple[Shown, ...]


def grid_of(matrix: Iterable[MatrixCell], gpu: str | None, asked: tuple[str, int] | None) -> Grid:
    """Return the grid; `gpu` is the GPU whose memory was checked, `asked` the engine and TP of the plan."""
    matrix = tuple(matrix)
    notes: dict[str, list[str]] = {}
    by_tp = {tp: tuple(cells) for tp, cells in groupby(matrix, lambda cell: cell.tp)}
    too_large = {tp for tp, cells in by_tp.items() if _is_too_large(cells) and (asked is None or asked[1] != tp)}
    drawn = {
        tp: () if tp in too_large else tuple(_cell(cell, gpu, asked, notes) for cell in cells)
        for tp, cells in by_tp.items()
    }
    rows = []
    for cells, alike in groupby(drawn, drawn.__getitem__):
        tps = list(alike)
        rows.append(GridRow(_span(tps), cells, "" if cells else _too_large([c for tp in tps for c in by_tp[tp]], gpu)))
    used = {cell.verdict for row in rows for cell in row.cells}
    used |= {shown(Verdict.FAILS, is_weighed=True)} if too_large else set()
    return Grid(
        engines=tuple(dict.fromkeys(cell.engine for cell in matrix)),
        rows=tuple(rows),
        notes=tuple(tuple(dict.fromkeys(texts)) for texts in notes.values()),
        legend=tuple(sorted(used, key=lambda one: (_SIGNS.index(one.sign), one.words))),
    )


def _span(tps: list[int]) -> str:
    return str(tps[0]) if len(tps) == 1 else f"{tps[0]} to {tps[-1]}"


def _is_too_large(cells: tuple[MatrixCell, ...]) -> bool:
    """Whether every engine's weights are too large for the GPU."""
    return all(cell.verdict is Verdict.FAILS and cell.rule == MEMORY_RULE for cell in cells)


def _too_large(cells: list[MatrixCell], gpu: str | None) -> str:
    held = [cell.bytes_per_rank for cell in cells if cell.bytes_per_rank is not None]
    weights = f"{min(held) / _GIB:.1f} GiB or more per GPU" if held else "the weights"
    return f"{Verdict.FAILS}: {weights} do not fit on {gpu_title(gpu) if gpu else 'any listed GPU'}"


def _cell(cell: MatrixCell, gpu: str | None, asked: tuple[str, int] | None, notes: dict[str, list[str]]) -> GridCell:
    numbers = []
    for text in _reasons(cell, gpu):
        key = _NUMBER.sub("#", text)
        notes.setdefault(key, []).append(text)
        numbers.append(list(notes).index(key) + 1)
    return GridCell(
        engine=cell.engine,
        verdict=of_cell(cell, gpu),
        weight=None if cell.bytes_per_rank is None else f"{cell.bytes_per_rank / _GIB:.1f}",
        layout=cell.how if cell.otherwise else None,
        notes=tuple(dict.fromkeys(numbers)),
        is_asked=asked == (cell.engine, cell.tp),
    )


def _reasons(cell: MatrixCell, gpu: str | None) -> Iterator[str]:
    """Yield why a cell is not just "runs": the arithmetic of the rule that breaks, and the changes."""
    if cell.reason is not None and cell.rule != MEMORY_RULE:
        of = f"{cell.module}: " if cell.module and cell.verdict is not Verdict.UNVERIFIED else ""
        said = " ".join(cell.engine_says.split()) if cell.engine_says else ""
        yield f"{of}{cell.reason}" + (f". {find_engine(cell.engine).title} says: {said}" if said else "")
    yield from map(str, cell.changes)
    known = GPUS.get(gpu.lower()) if gpu else None
    limit, whose = (known.memory, known.title) if known else (_LARGEST, "the largest listed GPU")
    if (cell.bytes_per_rank or 0) >= limit:
        yield f"more than {whose} has ({gib(limit)})"
