"""`Report`: the content of the page, and how to make it from a checkpoint and a plan."""

import shlex
from collections.abc import Iterator
from datetime import datetime

from dsv4_shard.checkpoint import Checkpoint, Inventory, UnknownCheckpoint, config_digest
from dsv4_shard.engines import Context, engine_for
from dsv4_shard.inspection import DEFAULT_TPS, Inspection, inspect, inspect_unknown
from dsv4_shard.models import Module
from dsv4_shard.planning import BlockGrid, Plan, Search, choose, options_of, shared_grid
from dsv4_shard.reporting.charts import failing_grids
from dsv4_shard.reporting.content import ReportContent, gpu_in_words
from dsv4_shard.reporting.page import to_html
from dsv4_shard.reporting.rank_contents import layer_bytes, rank_bytes


class Report(ReportContent):
    """The content of a report, and its page."""

    def to_html(self, made: datetime | None = None) -> str:
        """Return the page. `made` is the date on it: by default now, or that of SOURCE_DATE_EPOCH."""
        return to_html(self, made)


def command_of(label: str, options: str) -> str:
    """Return the command that makes the report of a checkpoint with these options."""
    return f"dsv4-shard report {shlex.quote(label)}{' ' if options else ''}{options}"


def plan_options(plan: Plan) -> str:
    """Return the options of `plan` and `report` that give this plan again."""
    return options_of(plan.request) + (f" --context {plan.context}" if plan.context else "")


def make_report(
    checkpoint: Checkpoint,
    inventory: Inventory,
    plan: Plan | None = None,
    search: Search | None = None,
    tps: tuple[int, ...] = DEFAULT_TPS,
    command: str | None = None,
) -> Report:
    """Return the report of a checkpoint, and of a plan for it that `check_plan` accepts.

    The matrix is for the GPU of the plan or the search, if they name one.

    Args:
        checkpoint: The checkpoint.
        inventory: Its inventory.
        plan: The plan, None for the checkpoint alone.
        search: The search that found the plan.
        tps: TP sizes of the matrix.
        command: The command that makes this report; by default that of the plan.

    Raises:
        ShardError: As `inspect`.
    """
    inspection = inspect(checkpoint, inventory, tps, **gpu_in_words(plan, search))
    label = plan.source.label if plan else checkpoint.source.label
    told = command_of(label, plan_options(plan) if plan else "") if command is None else command
    digest = config_digest(checkpoint.document)
    if plan is None:
        grids = tuple(_first_failing(inspection))
        return Report(command=told, config_digest=digest, inspection=inspection, plan=None, search=search, grids=grids)
    shared = shared_grid(plan)
    grids = (*failing_grids(plan), *((shared,) if shared and shared.ranks > 1 else ()))
    choice, engine = choose(inventory, plan.request), engine_for(plan.request.engine, inventory.family)
    context, is_weighed = Context(inventory, choice.deployment), plan.totals is not None
    return Report(
        command=told,
        config_digest=digest,
        inspection=inspection,
        plan=plan,
        search=search,
        grids=grids,
        layers=layer_bytes(checkpoint, engine, context) if is_weighed else (),
        ranks=rank_bytes(checkpoint, engine, context) if is_weighed else (),
    )


def make_unknown_report(checkpoint: UnknownCheckpoint, command: str | None = None) -> Report:
    """Return the report of a checkpoint of an unknown family: what it holds, and what divides."""
    return Report(
        command=command_of(checkpoint.source.label, "") if command is None else command,
        config_digest=config_digest(checkpoint.document),
        inspection=inspect_unknown(checkpoint),
        plan=None,
        search=None,
        grids=(),
    )


def _first_failing(inspection: Inspection) -> Iterator[BlockGrid]:
    """Yield the shared expert's blocks at the first TP that cuts inside one; its three matrices are equal there."""
    cut = [row for row in inspection.dimensions if row.module is Module.SHARED and row.unit > 1]
    tps = [share.tp for row in cut[:1] for share in row.shares if not share.whole]
    if tps:
        yield BlockGrid(Module.SHARED, "intermediate size", cut[0].size, cut[0].unit, "blocks", "TP", tps[0], tps[0],
                        "split")  # fmt: skip
