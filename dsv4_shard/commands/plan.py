"""`plan`: a layout, those of a configuration or on a number of GPUs, the fewest GPUs, or what differs in two plans."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import dsv4_shard
from dsv4_shard.catalog.option import names_of
from dsv4_shard.catalog.request import (
    FewestOptions,
    PlanCommandOptions,
    SearchOptions,
    rank_by_alone,
    refuse_beside_gpus,
    refuse_beside_no_layout,
)
from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.terminal import options
from dsv4_shard.terminal.arguments import default_repo, refuse_beside_compare, refuse_beside_from
from dsv4_shard.terminal.output import output_console, show
from dsv4_shard.terminal.process import reported

if TYPE_CHECKING:
    from dsv4_shard.catalog.request import Request
    from dsv4_shard.planning import Plan


@reported
@options.takes(PlanCommandOptions)
def plan(
    command_context: typer.Context,
    given: dict[str, Any],
    repo: options.DefaultRepoArg = None,
    details: options.DetailsOpt = False,
    source: options.FromOpt = None,
    role: options.RoleOpt = None,
    prefill: options.PrefillOpt = None,
    decode: options.DecodeOpt = None,
    compare: options.CompareOpt = None,
    as_json: options.JsonOpt = False,
) -> None:
    """Check whether a layout runs, and show how to launch it.

    If it does not run, names the broken rule and the nearest layouts that run.

    With --gpus in place of --tp, lists every layout that runs on so many GPUs, fewest bytes per GPU first.

    With neither, lists the fewest GPUs of each kind, or of --gpu, that hold the weights. --pick N plans a row.

    With --from, plans what a command line, manifest or recipe starts, and says what became of each option.

    With --prefill and --decode, plans both as one deployment, with the router.

    With --compare, shows what differs between two plans.
    """
    if compare is not None:
        refuse_beside_compare(command_context)
        _compare(*compare, as_json)
        return
    if source is not None:
        refuse_beside_from(given)
        _from(source, repo, role, as_json, given, details)
        return
    if prefill is not None or decode is not None:
        refuse_beside_from(given, "--prefill and --decode")
        _pair(default_repo() if repo is None else repo, prefill, decode, as_json, given)
        return
    if role is not None:
        raise UsageError("--role without --from", hint="It names a role of the configuration that --from reads.")
    if "gpus" in given:
        refuse_beside_gpus(name for name in given if name not in (*names_of(SearchOptions), "pick"))
        _search(default_repo() if repo is None else repo, as_json, given, details)
        return
    if "rank_by" in given:
        raise rank_by_alone()
    if "tp" not in given:
        refuse_beside_no_layout(name for name in given if name not in (*names_of(FewestOptions), "pick", "output"))
        _fewest(default_repo() if repo is None else repo, as_json, given, details)
        return
    if "pick" in given:
        raise UsageError("--pick and --tp: a layout is one row", hint="Leave out --pick.")
    made = dsv4_shard.plan(default_repo() if repo is None else repo, **given)
    _show_plan(made, given.get("output"), as_json, details)


def _show_plan(made: "Plan", output: str | Path | None, as_json: bool, details: bool) -> None:
    """Show a plan, and exit with the code of its verdict."""
    from dsv4_shard.engines import Verdict, title_of
    from dsv4_shard.launch_files import is_folder
    from dsv4_shard.terminal.screens.plan import show_plan

    title = title_of(made.request.engine, made.engine_version)
    plan_file = None if output is None else str(Path(output) / "plan.json") if is_folder(output) else str(output)
    show(made, as_json, show_plan, title, plan_file, details=details)
    if output is not None and is_folder(output) and not as_json:
        from dsv4_shard.terminal.text import paragraph

        paragraph(output_console(), f"Its scripts and manifests are in {output}")
    if not made.verdict.is_good:
        raise typer.Exit(ExitCode.NOT_VERIFIED if made.verdict is Verdict.UNVERIFIED else ExitCode.NO)


def _from(source: str, repo: str | None, role: str | None, as_json: bool, given: dict[str, Any], details: bool) -> None:
    """Run `plan --from`."""
    from dsv4_shard.terminal.screens.deployment import show_deployment

    output = given.get("output")
    found = dsv4_shard.plan_from(source, repo=repo, role=role, **given)
    show(found, as_json, show_deployment, str(output) if output else None, details=details)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _pair(repo: str, prefill: str | None, decode: str | None, as_json: bool, given: dict[str, Any]) -> None:
    """Run `plan --prefill --decode`."""
    from dsv4_shard.terminal.screens.deployment import show_deployment

    if prefill is None or decode is None:
        missing = "--prefill" if prefill is None else "--decode"
        raise UsageError(f"no {missing}", hint="Give both roles: --prefill '--tp 8' --decode '--tp 16'.")
    output = given.get("output")
    found = dsv4_shard.plan_pair(repo, prefill=prefill, decode=decode, **given)
    show(found, as_json, show_deployment, str(output) if output else None)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _search(repo: str, as_json: bool, given: dict[str, Any], details: bool) -> None:
    """Run `plan --gpus`."""
    from dsv4_shard.terminal.screens.search import show_search

    pick = given.pop("pick", None)
    wanted = given if pick is None else {name: value for name, value in given.items() if name != "output"}
    found = dsv4_shard.search(repo, **wanted)
    if pick is not None:
        _plan_row(repo, [layout.request for layout in found.layouts], pick, as_json, given, details)
        return
    show(found, as_json, show_search)
    if "output" in given and found.best is not None and not as_json:
        from dsv4_shard.terminal.text import paragraph

        paragraph(output_console(), f"Wrote {given['output']}: the plan of row 1.")
    if found.best is None:
        may_run = any(layout.fits for layout in found.unverified)
        raise typer.Exit(ExitCode.NOT_VERIFIED if may_run else ExitCode.NO)


def _fewest(repo: str, as_json: bool, given: dict[str, Any], details: bool) -> None:
    """Run `plan` without a layout."""
    from dsv4_shard.terminal.screens.fewest import show_fewest

    pick = given.pop("pick", None)
    found = dsv4_shard.fewest(repo, **{name: value for name, value in given.items() if name != "output"})
    rows = [kind.layout.request for kind in found.kinds if kind.layout is not None]
    if pick is not None:
        _plan_row(repo, rows, pick, as_json, given, details)
        return
    if "output" in given:
        raise UsageError("--output without a layout", hint="Name the row whose plan is to be written with --pick.")
    show(found, as_json, show_fewest, details=details)
    if not any(kind.verified and kind.gpus for kind in found.kinds):
        may_run = any(kind.gpus or kind.unverified for kind in found.kinds)
        raise typer.Exit(ExitCode.NOT_VERIFIED if may_run else ExitCode.NO)


def _plan_row(repo: str, rows: "list[Request]", pick: int, as_json: bool, given: dict[str, Any], details: bool) -> None:
    """Plan the row `pick`, from 1, of the layouts that a search found."""
    if pick > len(rows):
        raise UsageError(f"--pick {pick}: there are {len(rows)} rows", hint="Run without --pick to see them.")
    request = {name: value for name, value in vars(rows[pick - 1]).items() if value is not None}
    more = {name: given[name] for name in ("context", "output", "refresh") if name in given}
    made = dsv4_shard.plan(repo, **request, **more)
    _show_plan(made, given.get("output"), as_json, details)


def _compare(a: Path, b: Path, as_json: bool) -> None:
    """Run `plan --compare`."""
    from dsv4_shard.terminal.screens.compare import show_comparison

    comparison = dsv4_shard.compare(a, b)
    show(comparison, as_json, show_comparison)
