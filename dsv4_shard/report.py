"""The verb `report`: one HTML page about a checkpoint and a plan for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dsv4_shard.catalog.option import Option, words_of
from dsv4_shard.catalog.request import REFRESH, LayoutOrSearch, SearchOptions, rank_by_alone, refuse_beside_gpus
from dsv4_shard.catalog.verb import Later, verb
from dsv4_shard.errors import BadPlan, ShardError, UnsupportedFamily, UsageError
from dsv4_shard.text.shell import shell_word
from dsv4_shard.text.suggest import as_option

if TYPE_CHECKING:
    from dsv4_shard.checkpoint import Checkpoint, Inventory
    from dsv4_shard.planning import document
    from dsv4_shard.reporting import report as reporting
else:
    document = Later("dsv4_shard.planning.document")
    reporting = Later("dsv4_shard.reporting.report")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(LayoutOrSearch):
    """The options of `report`."""

    output: Annotated[str | Path | None, Option(help="The file to write.", metavar="FILE", short="-o")] = None
    repo: Annotated[
        str | Path | None,
        Option(
            help="Where to find the plan's checkpoint.",
            metavar="REPO", shows="where the plan names it", completion="repos", typed=str,
        ),
    ] = None  # fmt: skip
    refresh: Annotated[bool, REFRESH] = False


@verb(ReportOptions)
def report(source: "str | Path | document.Plan", options: ReportOptions) -> "reporting.Report":
    """Make one HTML page to read and to send: which layouts run and why, what each rank holds, and how to launch it.

    `source` is a plan, a plan file (`*.json`), or a checkpoint as in `inspect`. For a checkpoint, the keywords of
    `plan` or, with `gpus`, those of `search` select the layout; without them the page describes the checkpoint alone,
    also if its family is unknown. A plan is verified against its checkpoint, which is in `repo` or where the plan names
    it. `output` is the file to write, of some 50 kB. The page has the date, or that of SOURCE_DATE_EPOCH.

    Returns a Report: its numbers are fields, and `to_html()` returns the page.

    Raises:
        - UsageError: options contradict each other or `source`.
        - ForeignPlan, BadPlan: the plan is for another checkpoint, or was edited.
        - The errors of `plan`.
        - WriteFailed: `output` cannot be written.

    >>> made = dsv4_shard.report("model", tp=16, gpu="h20-96", output="report.html")
    >>> made.ranks[-1].last, made.to_html()[:15]
    (15, '<!doctype html>')
    """
    from dsv4_shard.checkpoint import read_unknown
    from dsv4_shard.opening import at_commit, open_source
    from dsv4_shard.planning import check_plan, make_plan, plan_best, request_of, search_for
    from dsv4_shard.reporting import command_of, make_report, make_unknown_report, plan_options
    from dsv4_shard.storage import write_text

    plan, found, words = _plan_in(source), None, ""
    _refuse_for_report(source, plan, options)
    name = str(source) if plan is None else str(options.repo or plan.source.label)
    try:
        checkpoint, inventory = _open_for_report(name, plan, options)
    except UnsupportedFamily as error:
        if plan is not None or options.given_of(LayoutOrSearch):
            error.hint = f"Without a layout, `dsv4-shard report {shell_word(name)}` shows tensors and what divides."
            raise
        made = make_unknown_report(read_unknown(open_source(name)))
    else:
        if plan is not None:
            plan = check_plan(plan, checkpoint, inventory)
        elif options.gpus is not None:
            searched = _search_of(options, options.gpus)
            found, words = search_for(checkpoint, inventory, searched), " ".join(words_of(searched))
            plan = plan_best(checkpoint, inventory, found) if found.best is not None else None
        elif options.tp is not None:
            plan = make_plan(checkpoint, inventory, request_of(options), session=options.context)
        words = words or (plan_options(plan) if plan else "")
        made = make_report(checkpoint, inventory, plan, found, command=command_of(at_commit(name, checkpoint), words))
    if options.output is not None:
        write_text(Path(options.output), made.to_html())
    return made


def _plan_in(source: "str | Path | document.Plan") -> "document.Plan | None":
    """Return the plan in `source`; None for a checkpoint. Raises BadPlan, whose hint names a checkpoint's folder."""
    from dsv4_shard.planning import plan_given
    from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE

    try:
        return plan_given(source)
    except BadPlan as error:
        if isinstance(source, str | Path) and Path(source).name in (CONFIG_FILE, INDEX_FILE):
            error.hint = f"To report on the checkpoint, name its folder: {Path(source).parent}."
        raise


def _search_of(options: ReportOptions, gpus: int) -> SearchOptions:
    engine = options.engine if "engine" in options.given else None
    free: dict[str, Any] = {name: None for name in ("dp", "shared_experts") if name not in options.given}
    names = engine if engine is None or isinstance(engine, str) else ",".join(engine)
    return options.part(SearchOptions, gpus=gpus, engine=names, output=None, refresh=False, **free)


def _refuse_for_report(source: object, plan: "document.Plan | None", options: ReportOptions) -> None:
    """Raise UsageError for options that contradict each other; `plan` is the plan in `source`, if there is one."""
    asked, gpus = options.given_of(LayoutOrSearch), options.gpus
    if asked == ["rank_by"]:
        raise rank_by_alone()
    if plan is not None and asked:
        raise UsageError(f"{{{asked[0]}}} beside a plan: the plan says it already",
                         hint=f"Leave out {as_option(asked[0])}.", parameters={asked[0]: ...})  # fmt: skip
    if plan is None and asked and gpus is None and options.tp is None:
        raise UsageError(f"{{{asked[0]}}} without {{tp}} or {{gpus}}", hint="Add one of these, or name a plan file.",
                         parameters={asked[0]: ..., "tp": ..., "gpus": ...})  # fmt: skip
    if "rank_by" in asked and gpus is None:
        raise rank_by_alone()
    if gpus is not None:
        refuse_beside_gpus(options.given_of(LayoutOrSearch, beside=SearchOptions))
    if plan is None and options.repo is not None:
        raise UsageError("{repo}: the source is no plan file, but a checkpoint itself", hint="Leave out --repo.",
                         parameters={"repo": ...})  # fmt: skip


def _open_for_report(name: str, plan: "document.Plan | None", options: ReportOptions) -> "tuple[Checkpoint, Inventory]":
    """Open the checkpoint that the user or the plan names."""
    from dsv4_shard.opening import open_checkpoint, pinned

    try:
        return open_checkpoint(pinned(name, plan), refresh=options.refresh, exact=False)
    except ShardError as error:
        if plan is not None and options.repo is None:
            error.add_note(f"the plan names its checkpoint {name}: if that is elsewhere, say where with --repo")
        raise
