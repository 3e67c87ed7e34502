"""`Report`: the content of the page, and how to make it from a checkpoint and a plan."""

from collections.abc import Iterator

from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.engines import Context, Verdict, engine_for
from dsv4_shard.inspection import DEFAULT_TPS, Inspection, inspect
from dsv4_shard.models import Module
from dsv4_shard.planning import BlockGrid, Plan, Search, broken_grids, choose, shared_grid
from dsv4_shard.reporting.content import ReportContent, gpu_in_words
from dsv4_shard.reporting.page import to_html
from dsv4_shard.reporting.rank_contents import layer_map, rank_bytes


class Report(ReportContent):
    """The content of a report, and its page."""

    def to_html(self) -> str:
        """Return the page. The same report gives the same page: it has no dates and no addresses."""
        return to_html(self)


def make_report(
    checkpoint: Checkpoint,
    inventory: Inventory,
    plan: Plan | None = None,
    search: Search | None = None,
    tps: tuple[int, ...] = DEFAULT_TPS,
) -> Report:
    """Return the report of a checkpoint, and of a plan for it that `check_plan` accepts.

    The matrix is for the GPU of the plan or the search, if they name one.

    Args:
        checkpoint: The checkpoint.
        inventory: Its inventory.
        plan: The plan, None for the checkpoint alone.
        search: The search that found the plan.
        tps: TP sizes of the matrix.

    Raises:
        ShardError: As `inspect`.
    """
    inspection = inspect(checkpoint, inventory, tps, **gpu_in_words(plan, search))
    if plan is None:
        grids = tuple(_candidate_grids(inspection))
        return Report(inspection=inspection, plan=None, search=search, grids=grids)
    grid = shared_grid(plan)
    grids = (*broken_grids(plan), *((grid,) if grid and grid.ranks > 1 else ()))
    request = plan.request
    choice, engine = choose(inventory, request), engine_for(request.engine, inventory.family)
    context = Context(inventory, choice.deployment)
    if plan.verdict is Verdict.UNVERIFIED and not plan.feasible:
        return Report(inspection=inspection, plan=plan, search=search, grids=grids)
    layers = layer_map(checkpoint, engine, context, frozenset(breach.module for breach in choice.breaches))
    ranks = rank_bytes(checkpoint, engine, context) if choice.feasible else ()
    return Report(inspection=inspection, plan=plan, search=search, grids=grids, layers=layers, ranks=ranks)


def _candidate_grids(inspection: Inspection) -> Iterator[BlockGrid]:
    """Yield the shared expert's blocks at each TP that would cut them; its three matrices are equal on that axis."""
    cut = [row for row in inspection.dimensions if row.module is Module.SHARED and row.unit > 1]
    for share in cut[0].shares if cut else ():
        if share.tp > 1:
            yield BlockGrid(Module.SHARED, "intermediate size", cut[0].size, cut[0].unit, "blocks", "TP", share.tp,
                            share.tp, "split")  # fmt: skip
