"""Report: what the page shows."""

from collections.abc import Iterator

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.catalog.rank_ranges import span_of
from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.inspection.known_family import DEFAULT_TPS, Inspection, inspect
from dsv4_shard.models.roles import Module
from dsv4_shard.planning.block_grid import BlockGrid, broken_grids, shared_grid
from dsv4_shard.planning.choose import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.search import Search
from dsv4_shard.reporting.rank_contents import LayerMap, RankBytes, layer_map, rank_bytes
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import gib


class Report(Document):
    """What a page shows. `layers` and `ranks` are of the plan's deployment: None and empty where it has none."""

    inspection: Inspection
    plan: Plan | None
    search: Search | None
    grids: tuple[BlockGrid, ...]
    layers: LayerMap | None = None
    ranks: tuple[RankBytes, ...] = ()

    def in_short(self) -> str:
        """What it is of."""
        return (self.plan or self.search or self.inspection).in_short()

    def _repr_html_(self) -> str:
        """For notebooks: the plan, else the search, else the inspection; and what the ranks hold."""
        about = (self.plan or self.search or self.inspection)._repr_html_()
        head = ("ranks", "experts", "split", "whole", "padding", "other", "free")
        rows = [_row(rank) for rank in self.ranks]
        return about + (html_table("What the ranks hold", head, rows) if rows else "")


def _row(rank: RankBytes) -> tuple[str, ...]:
    """A row of a notebook's table: the ranks, and what they hold."""
    free = "not known" if rank.free is None else f"{'-' if rank.free < 0 else ''}{gib(abs(rank.free))}"
    held = (rank.experts, rank.split, rank.whole, rank.padding, rank.other)
    return span_of(range(rank.first, rank.last + 1)), *map(gib, held), free


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
    inspection = inspect(checkpoint, inventory, tps, **gpu_in_words(plan, search))
    if plan is None:
        grids = tuple(_candidate_grids(inspection))
        return Report(inspection=inspection, plan=None, search=search, grids=grids)
    grid = shared_grid(plan)
    grids = (*broken_grids(plan), *((grid,) if grid and grid.ranks > 1 else ()))
    request = Request(**plan.request)  # type: ignore[arg-type]
    choice, engine = choose(inventory, request), engine_for(request.engine, inventory.family)
    context = Context(inventory, choice.deployment)
    if plan.unknown:
        return Report(inspection=inspection, plan=plan, search=search, grids=grids)
    layers = layer_map(checkpoint, engine, context, frozenset(breach.module for breach in choice.breaches))
    ranks = rank_bytes(checkpoint, engine, context) if choice.feasible else ()
    return Report(inspection=inspection, plan=plan, search=search, grids=grids, layers=layers, ranks=ranks)


def gpu_in_words(plan: Plan | None, search: Search | None) -> dict[str, str]:
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
