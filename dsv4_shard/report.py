"""`report()`: the verb."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from dsv4_shard.errors import ShardError, UsageError
from dsv4_shard.text.suggest import as_option

if TYPE_CHECKING:
    from dsv4_shard.checkpoint.inventory import Inventory
    from dsv4_shard.checkpoint.reader import Checkpoint
    from dsv4_shard.planning.document import Plan
    from dsv4_shard.planning.request import LayoutOptions
    from dsv4_shard.reporting.report import Report


def report(
    source: "str | Path | Plan",
    *,
    output: str | Path | None = None,
    repo: str | Path | None = None,
    gpus: int | None = None,
    rank_by: str | None = None,
    refresh: bool = False,
    **asked: "Unpack[LayoutOptions]",
) -> "Report":
    """One HTML file to look at and to send: what runs and why, what each rank holds, and how it is launched.

    `source` is a plan, a plan file (`*.json`), or a checkpoint as in `inspect`; then the keywords of `plan` or, with
    `gpus`, those of `search` name the layout, and with none of these the report is of the checkpoint alone. A plan is
    held against its checkpoint, which is looked for where the plan names it, or in `repo`. `output` is the file to
    write, of some 300 kB; `to_html` gives the page itself.

    Raises UsageError for what does not go together, ForeignPlan and BadPlan, what `plan` raises, and WriteFailed.

    >>> made = dsv4_shard.report("model", tp=16, gpu="h20-96", output="report.html")
    >>> made.ranks[0].weights == made.plan.memory.weights
    True
    """
    from dsv4_shard.planning.make_plan import make_plan
    from dsv4_shard.planning.plan_file import check_plan, plan_given
    from dsv4_shard.planning.request import request_of
    from dsv4_shard.planning.search import plan_best, search_for
    from dsv4_shard.reporting.page import to_html
    from dsv4_shard.reporting.report import make_report
    from dsv4_shard.storage.output_folder import write_text

    plan, found = plan_given(source), None
    _refuse_for_report(source, plan, repo, gpus, rank_by, asked)
    checkpoint, inventory = _open_for_report(source, plan, repo, refresh)
    if plan is not None:
        plan = check_plan(plan, checkpoint, inventory)
    elif gpus is not None:
        found = search_for(checkpoint, inventory, gpus, rank_by=rank_by or "weights", **asked)
        plan = plan_best(checkpoint, inventory, found) if found.best is not None else None
    elif asked:
        plan = make_plan(checkpoint, inventory, request_of(**asked))
    made = make_report(checkpoint, inventory, plan, found)
    if output is not None:
        write_text(Path(output), to_html(made))
    return made


def _refuse_for_report(
    source: object,
    plan: "Plan | None",
    repo: object,
    gpus: int | None,
    rank_by: str | None,
    asked: Mapping[str, object],
) -> None:
    """Raise UsageError for what means nothing together; `plan` is the one that `source` is, if it is one."""
    if plan is not None and (asked or gpus is not None):
        option = as_option(next(iter(asked or {"gpus": gpus})))
        raise UsageError(f"{option} beside a plan: the plan says it already", hint=f"Leave out {option}.")
    if plan is None and asked and gpus is None and "tp" not in asked:
        option = as_option(next(iter(asked)))
        raise UsageError(f"{option} without --tp or --gpus", hint="Add one of these, or name a plan file.")
    if rank_by is not None and gpus is None:
        raise UsageError("--rank-by without --gpus", hint="It orders what --gpus finds.")
    if plan is None and repo is not None:
        raise UsageError(f"--repo: {source} is no plan file, but a checkpoint itself", hint="Leave out --repo.")


def _open_for_report(
    source: object, plan: "Plan | None", repo: object, refresh: bool
) -> "tuple[Checkpoint, Inventory]":
    """The checkpoint that `source` names, or that of the plan: in `repo`, else where the plan names it."""
    from dsv4_shard.opening import open_checkpoint, pinned

    name = str(source) if plan is None else str(repo or plan.source.label)
    try:
        return open_checkpoint(pinned(name, plan), refresh=refresh, exact=False)
    except ShardError as error:
        if plan is not None and repo is None:
            error.add_note(f"the plan names its checkpoint {name}: if that is elsewhere, say where with --repo")
        raise
