"""Inspection + plan → one HTML file: what runs and why, what each rank holds, and how it is launched, to send around.

The page is whole without scripts, but for its three charts, and asks the network for nothing, by its own policy. Charts
are drawn by Observable Plot (`assets/plot.js`, made by `make charts`) from numbers in the page.
"""

import base64
import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import groupby
from typing import Any

from markupsafe import Markup

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.catalog.options import RANKINGS
from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import engine_for, find_engine, title_of
from dsv4_shard.holdings import Column, Kind, LayerMap, RankBytes, is_mtp, layer_map, rank_bytes
from dsv4_shard.inspect import DEFAULT_TPS, Cell, Inspection, inspect
from dsv4_shard.models.roles import Module
from dsv4_shard.planning.block_grid import BlockGrid, broken_grids, shared_grid
from dsv4_shard.planning.choose import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.search import Search
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.units import counted, gib, quotient, size

_ASSETS = files("dsv4_shard") / "assets"
_OTHERWISE = "does not run so, other options do"
_VERDICTS = {"works": "runs", "with-options": "runs with options", "no": "does not run", "unknown": "not known"}
_RANK_KINDS = (
    ("experts", "routed experts"), ("split", "shared out"), ("whole", "whole on every rank"), ("padding", "padding"),
    ("other", "the engine's own"), ("free", "free"),
)  # fmt: skip
_MAP_KINDS = (
    (Kind.EXPERTS, "whole experts, shared out"), (Kind.SPLIT, "cut over ranks"), (Kind.PADDED, "cut, with padding"),
    (Kind.WHOLE, "whole on every rank"), (Kind.BREAKS, "a rule breaks"),
)  # fmt: skip
_BARS = 64
"""Ranks beyond so many are drawn together where they are alike."""
_TICKS = 10


@dataclass(frozen=True, slots=True)
class Report:
    """What a page shows. `layers` and `ranks` are of the plan's deployment: None and empty where it has none."""

    inspection: Inspection
    plan: Plan | None
    search: Search | None
    grids: tuple[BlockGrid, ...]
    layers: LayerMap | None
    ranks: tuple[RankBytes, ...]


def make_report(
    checkpoint: Checkpoint,
    inventory: Inventory,
    plan: Plan | None = None,
    search: Search | None = None,
    tps: tuple[int, ...] = DEFAULT_TPS,
) -> Report:
    """The report of a checkpoint, and of a plan for it that `check_plan` takes. `search` is what found the plan.

    The matrix is of the GPU that these name, if any. Raises as `inspect`.
    """
    inspection = inspect(checkpoint, inventory, tps, **_gpu(plan, search))
    if plan is None:
        return Report(inspection, None, search, tuple(_candidate_grids(inspection)), None, ())
    grid = shared_grid(plan)
    grids = (*broken_grids(plan), *((grid,) if grid and grid.ranks > 1 else ()))
    request = Request(**plan.request)  # type: ignore[arg-type]
    choice, engine = choose(inventory, request), engine_for(request.engine, inventory.family)
    context = Context(inventory, choice.at)
    if plan.unknown:
        return Report(inspection, plan, search, grids, None, ())
    layers = layer_map(checkpoint, engine, context, frozenset(breach.module for breach in choice.breaches))
    ranks = rank_bytes(checkpoint, engine, context) if choice.feasible else ()
    return Report(inspection, plan, search, grids, layers, ranks)


def _gpu(plan: Plan | None, search: Search | None) -> dict[str, str]:
    """The GPU that was asked for, as `inspect` takes it."""
    if plan is not None:
        return {name: str(plan.request[name]) for name in ("gpu", "gpu_memory") if plan.request[name]}
    if search is not None and search.gpu:
        return {"gpu" if search.gpu.lower() in GPUS else "gpu_memory": search.gpu}
    return {}


def _candidate_grids(inspection: Inspection) -> Iterator[BlockGrid]:
    """The shared expert's blocks at each TP that would cut them; its three matrices have the same on that axis."""
    cut = [row for row in inspection.dimensions if row.module is Module.SHARED and row.unit > 1]
    for share in cut[0].shares if cut else ():
        if share.tp > 1:
            yield BlockGrid(Module.SHARED, "intermediate size", cut[0].size, cut[0].unit, "blocks", "TP", share.tp,
                            share.tp, "split")  # fmt: skip


# --- the page --------------------------------------------------------------------------------------------------------


def to_html(report: Report) -> str:
    """The page, the same for the same report: no dates, no addresses."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dsv4_shard", "assets"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=lambda value: _printable(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters |= {
        "gib": gib, "size": size, "why": _why, "capitalize_first": _capitalized,
        "engine": lambda name: find_engine(name).title, "verdict": _says,
    }  # fmt: skip
    plot, script = _asset("plot.js"), _asset("report.js")
    return environment.get_template("report.html.jinja").render(
        _words(report),
        inspection=report.inspection,
        plan=report.plan,
        search=report.search,
        charts=_charts(report),
        rankings=RANKINGS,
        ranks=[asdict(rank) for rank in report.ranks],
        rank_kinds=_kinds_of(report.ranks),
        map_kinds=[(k, w) for k, w in _MAP_KINDS if report.layers and any(c.kind is k for c in report.layers.columns)],
        map_rows=list(_map_rows(report.layers)) if report.layers else [],
        css=Markup(_asset("report.css")),
        plot_js=Markup(plot),
        report_js=Markup(script),
        script_hashes=Markup(" ".join(_hash(text) for text in (plot, script))),
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script by what it is, for the page's policy: no other runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _printable(text: str) -> str:
    return "\n".join(map(clean, text.split("\n")))


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- words -----------------------------------------------------------------------------------------------------------


def _words(report: Report) -> dict[str, Any]:
    """Titles and sentences of the page."""
    it, plan = report.inspection.identity, report.plan
    label = plan.source.label if plan else it.label
    name = label.rstrip("/").rpartition("/")[2] or label
    revision = f" @ {it.revision[:12]}" if it.revision else ""
    gpu = next(filter(None, _gpu(plan, report.search).values()), None)
    held = f"{counted(it.tensors, 'tensor')} in {counted(it.files, 'file')}, {size(it.bytes)}"
    words = {
        "title": f"{name} on {_title(plan)}" if plan else name,
        "identity": f"{label}{revision}: {it.family}, {held}; "
        f"{it.layers} layers, {it.routed_experts} routed experts and {it.shared_experts} shared",
        "engines": list(dict.fromkeys(cell.engine for cell in report.inspection.matrix)),
        "matrix": {tp: list(cells) for tp, cells in groupby(report.inspection.matrix, lambda cell: cell.tp)},
        "matrix_note": f"With each engine's own choices on GPUs of {gpu}."
        if gpu
        else "With each engine's own choices on Hopper; memory is not looked at.",
        "asked": (plan.deployment["engine"], plan.deployment["tp"]) if plan else None,
        "plan_command": f"dsv4-shard plan {shlex.quote(label)}",
        "report_command": f"dsv4-shard report {shlex.quote(label)} --tp 16 -o report.html",
    }
    return words | (_plan_words(plan) if plan else {"facts": ()})


def _title(plan: Plan) -> str:
    engine = title_of(str(plan.request["engine"]), plan.engine_version)
    return f"{engine} {plan.engine_version}, TP {plan.deployment['tp']}"


def _plan_words(plan: Plan) -> dict[str, Any]:
    at = plan.deployment
    gpus = counted(at["world"], f"{at['gpu']} GPU" if at["gpu"] else "GPU")
    nodes = f" on {at['nodes']} nodes" if at["nodes"] > 1 else ""
    a2a = f", all-to-all {at['a2a']}" if at["a2a"] else ""
    environment = "".join(f"{name}={shlex.quote(value)} " for name, value in plan.launch.environment.items())
    return {
        "layout": f"{gpus}{nodes}: TP {at['tp']}, EP {at['ep']}, DP {at['dp']}; attention TP {at['attention_tp']}, "
        f"MoE TP {at['moe_tp']}, runner {at['runner']}{a2a}",
        "verdict": f"{plan.title}, with" if plan.feasible and plan.choices else plan.title,
        "facts": list(_facts(plan)),
        "launch": [environment + command for command in plan.launch.commands],
    }  # fmt: skip


def _facts(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """The numbers that decide: name, value, and what else is to be said of it."""
    totals, memory = plan.totals, plan.memory
    if totals is None:
        return
    least, most = totals.target_bytes_per_rank_min, totals.target_bytes_per_rank_max
    weights = memory.weights if memory else most
    yield "Weights a rank", gib(weights), f"{gib(least)} on the lightest" if least < most else f"{totals.ranks} alike"
    if memory is not None:
        left = ("Free of its memory", gib(memory.left)) if memory.fits else ("Memory missing", gib(-memory.left))
        yield *left, f"of {gib(memory.capacity)}" if memory.fits else f"beyond {gib(memory.capacity)}"
        if memory.kv_tokens_at_most is not None:
            yield "Tokens of KV cache", f"{memory.kv_tokens_at_most:,}", "at most, an attention group"
    yield "Whole on every rank", gib(totals.replicated_bytes_per_rank), ""
    if totals.padding_bytes_per_rank:
        yield "Padding a rank", gib(totals.padding_bytes_per_rank), ""
    if totals.draft_bytes_per_rank and plan.deployment["engine"] != "reference":
        yield "MTP draft, if loaded", gib(totals.draft_bytes_per_rank), "more a rank"


def _says(cell: Cell) -> str:
    return _OTHERWISE if cell.otherwise else _VERDICTS[cell.verdict]


def _why(cell: Cell) -> Iterator[str]:
    """What is to be said of a verdict: what it takes and weighs, and the arithmetic of what does not hold."""
    if cell.how and cell.how.startswith("--"):
        yield f"as {cell.how}"
    if cell.bytes_per_rank is not None:
        yield f"{gib(cell.bytes_per_rank)} a rank"
    if cell.reason:
        yield cell.reason if cell.verdict == "unknown" or cell.module is None else f"{cell.module}: {cell.reason}"
    yield from cell.notes


# --- numbers of the charts -------------------------------------------------------------------------------------------


def _charts(report: Report) -> dict[str, Any]:
    """All that is drawn, as the scripts take it."""
    return {
        "grids": [_grid(grid, is_placed=report.plan is not None and grid.fits) for grid in report.grids],
        "ranks": _rank_chart(report) if report.ranks else None,
        "map": _map_chart(report.layers) if report.layers else None,
    }


def _grid(grid: BlockGrid, is_placed: bool) -> dict[str, Any]:
    """Blocks as (start, stop, cut inside), cuts as (place, inside a block), placed parts as (start, stop, zeros)."""
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
    return _capitalized(
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


def _kinds_of(ranks: tuple[RankBytes, ...]) -> list[tuple[str, str]]:
    """The kinds of bytes that some rank has."""
    return [(kind, words) for kind, words in _RANK_KINDS if any((getattr(rank, kind) or 0) for rank in ranks)]


def _rank_chart(report: Report) -> dict[str, Any]:
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
        "kinds": _kinds_of(report.ranks),
        "margin": 16 + 7 * max(len(bar["label"]) for bar in bars),
        "capacity": memory.capacity if memory else None,
    }


def _map_chart(layers: LayerMap) -> dict[str, Any]:
    totals = [0] * len(layers.columns)
    for cell in layers.cells:
        totals[cell.column] += cell.nbytes
    every = max(1, len(layers.rows) // _TICKS)
    return {
        "rows": layers.rows,
        "titles": [f"layer {row}" if row.isdigit() else row for row in layers.rows],
        "columns": [
            {"kind": column.kind, "title": f"{_name(column, layers)}: {_placed(column.kind, column.placement)}"
             + (f", {size(total)}" if total else "")}
            for column, total in zip(layers.columns, totals, strict=True)
        ],
        "cells": [(cell.row, cell.column, cell.nbytes, cell.padding) for cell in layers.cells],
        "ticks": [(number, row) for number, row in enumerate(layers.rows) if row.isdigit() and int(row) % every == 0],
    }  # fmt: skip


def _name(column: Column, layers: LayerMap) -> str:
    """The module, and which of its tensors, where others of it are placed in another way."""
    alone = sum(other.module is column.module for other in layers.columns) == 1
    return str(column.module) if alone else f"{column.module} ({_roles(column)})"


def _roles(column: Column) -> str:
    return ", ".join(dict.fromkeys(role.rpartition(".")[2] for role in column.roles))


def _placed(kind: Kind, placement: str) -> str:
    return "a rule breaks" if kind is Kind.BREAKS else "whole on every rank" if kind is Kind.WHOLE else placement


def _map_rows(layers: LayerMap) -> Iterator[dict[str, Any]]:
    """A column of the map, and by itself what of it is the draft model's: the plan's bytes a rank are without that."""
    for number, column in enumerate(layers.columns):
        cells = sorted((cell for cell in layers.cells if cell.column == number), key=lambda cell: cell.row)
        for is_draft in (False, True):
            members = [cell for cell in cells if is_mtp(layers.rows[cell.row]) == is_draft]
            if members:
                yield {
                    "module": column.module,
                    "placement": _placed(column.kind, column.placement),
                    "roles": _roles(column),
                    "layers": _spans([layers.rows[cell.row] for cell in members]),
                    "nbytes": None if column.kind is Kind.BREAKS else sum(cell.nbytes for cell in members),
                }


def _spans(rows: list[str]) -> str:
    """Titles of rows, runs of numbers as spans: `model, 0-60, MTP 0`; what stands in every second one stays a list."""
    spans: list[list[str]] = []
    for row in rows:
        if spans and row.isdigit() and spans[-1][-1].isdigit() and int(row) == int(spans[-1][-1]) + 1:
            spans[-1] = [spans[-1][0], row]
        else:
            spans.append([row])
    return ", ".join("-".join(span) for span in spans)
