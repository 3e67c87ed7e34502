"""The commands: parse the options, call a verb, show the result. Results go to stdout, everything else to stderr."""

import gc
import importlib.util
import io
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from dsv4_shard.errors import ExitCode, NothingToDo, OutputNotEmpty, UsageError
from dsv4_shard.explain import ExplainOptions
from dsv4_shard.inspect import InspectOptions
from dsv4_shard.report import ReportOptions
from dsv4_shard.reshard import would_merge, would_reshard
from dsv4_shard.sharding.options import (
    ClusterOptions,
    DryRunOptions,
    MergeCommand,
    MergeDryRunOptions,
    MergeOptions,
    ReshardCommand,
    ReshardOptions,
    SignatureToVerify,
    SignCommand,
    StoreOptions,
    VerifyCommand,
)
from dsv4_shard.terminal import completion, options
from dsv4_shard.terminal.arguments import default_repo, numbers, only, refuse_beside_compare, text_or_log
from dsv4_shard.terminal.ascii import show_signs
from dsv4_shard.terminal.help import HelpCommand, HelpGroup
from dsv4_shard.terminal.process import OUTSIDE, allow_open_files, handle_signals, open_standard_streams, reported
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.suggest import as_option

if TYPE_CHECKING:
    from rich.console import Console

    from dsv4_shard.catalog.request import Request
    from dsv4_shard.destinations import WouldWrite
    from dsv4_shard.planning import Plan
    from dsv4_shard.sharding.outcome import Outcome
    from dsv4_shard.text.document import Document

app = typer.Typer(
    name="dsv4-shard",
    help="From a DeepSeek-V4 checkpoint to a deployment plan to verified per-rank shards.",
    cls=HelpGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _consoles() -> tuple["Console", "Console"]:
    from dsv4_shard.terminal.console import consoles

    return consoles()


def _print_json(document: "Document") -> None:
    print(document.to_json(), end="")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dsv4-shard {dsv4_shard.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# --- commands ------------------------------------------------------------------------------------------------------


@app.command(cls=HelpCommand)
@reported
@options.takes(InspectOptions)
def inspect(
    repo: options.RepoArg,
    given: dict[str, Any],
    tp: str = "1,2,4,8,16,32,64",
    as_json: options.JsonOpt = False,
) -> None:
    """Show what a checkpoint holds, and what runs at each TP.

    Reads headers only. For other model families, shows tensors and which TP sizes split them on block boundaries.
    """
    from dsv4_shard.inspection import Inspection
    from dsv4_shard.terminal import last_inspected as recent
    from dsv4_shard.terminal.known_family import show_inspection
    from dsv4_shard.terminal.unknown_family import show_unknown

    inspection = dsv4_shard.inspect(repo, tp=numbers(tp, "--tp"), **given)
    recent.remember(repo)
    if as_json:
        _print_json(inspection)
    elif isinstance(inspection, Inspection):
        show_inspection(_consoles()[0], inspection)
    else:
        show_unknown(_consoles()[0], inspection)
    if isinstance(inspection, Inspection) and inspection.has_errors:
        raise typer.Exit(ExitCode.CHECKPOINT)


@app.command(cls=HelpCommand)
@reported
@options.takes(PlanCommandOptions)
def plan(
    command_context: typer.Context,
    given: dict[str, Any],
    repo: options.DefaultRepoArg = None,
    details: options.DetailsOpt = False,
    compare: options.CompareOpt = None,
    as_json: options.JsonOpt = False,
) -> None:
    """Check whether a layout runs, and show how to launch it.

    If it does not run, names the broken rule and the nearest layouts that run.

    With --gpus in place of --tp, lists every layout that runs on so many GPUs, fewest bytes per GPU first.

    With neither, lists the fewest GPUs of each kind, or of --gpu, that hold the weights. --pick N plans a row.

    With --compare, shows what differs between two plans.
    """
    if compare is not None:
        refuse_beside_compare(command_context)
        _compare(*compare, as_json)
        return
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


def _show_plan(made: "Plan", output: Path | None, as_json: bool, details: bool) -> None:
    """Show a plan, and exit with the code of its verdict."""
    from dsv4_shard.engines import Verdict, title_of

    if as_json:
        print(made.to_json(), end="")
    else:
        from dsv4_shard.terminal.plan import show_plan
        from dsv4_shard.terminal.plan_details import show_details

        title = title_of(made.request.engine, made.engine_version)
        show_plan(_consoles()[0], made, title, str(output) if output else None)
        if details:
            show_details(_consoles()[0], made)
    if not made.verdict.is_good:
        raise typer.Exit(ExitCode.NOT_VERIFIED if made.verdict is Verdict.UNVERIFIED else ExitCode.NO)


def _search(repo: str, as_json: bool, given: dict[str, Any], details: bool) -> None:
    """Run `plan --gpus`."""
    from dsv4_shard.terminal.search import show_search

    pick = given.pop("pick", None)
    wanted = given if pick is None else {name: value for name, value in given.items() if name != "output"}
    found = dsv4_shard.search(repo, **wanted)
    if pick is not None:
        _plan_row(repo, [layout.request for layout in found.layouts], pick, as_json, given, details)
        return
    if as_json:
        _print_json(found)
    else:
        show_search(_consoles()[0], found)
    if found.best is None:
        may_run = any(layout.fits for layout in found.unverified)
        raise typer.Exit(ExitCode.NOT_VERIFIED if may_run else ExitCode.NO)


def _fewest(repo: str, as_json: bool, given: dict[str, Any], details: bool) -> None:
    """Run `plan` without a layout."""
    from dsv4_shard.terminal.fewest import show_fewest

    pick = given.pop("pick", None)
    found = dsv4_shard.fewest(repo, **{name: value for name, value in given.items() if name != "output"})
    rows = [kind.layout.request for kind in found.kinds if kind.layout is not None]
    if pick is not None:
        _plan_row(repo, rows, pick, as_json, given, details)
        return
    if "output" in given:
        raise UsageError("--output without a layout", hint="Name the row whose plan is to be written with --pick.")
    if as_json:
        _print_json(found)
    else:
        show_fewest(_consoles()[0], found)
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
    from dsv4_shard.terminal.comparison import show_comparison

    comparison = dsv4_shard.compare(a, b)
    if as_json:
        _print_json(comparison)
    else:
        show_comparison(_consoles()[0], comparison)


@app.command(cls=HelpCommand)
@reported
@options.takes(ReportOptions)
def report(source: options.SourceArg, given: dict[str, Any], output: Path = Path("report.html")) -> None:
    """Write one HTML file: what runs and why, and what each rank holds.

    Takes a plan, or a checkpoint with a layout as in `plan`. Without a layout, the page shows the checkpoint alone. The
    page loads nothing from the network.

    The exit code is 0 also if the layout does not run: the page says so.
    """
    from dsv4_shard.terminal.written import show_report

    made = dsv4_shard.report(source, output=output, **given)
    show_report(_consoles()[0], made, output)


@app.command(cls=HelpCommand)
@reported
@options.takes(ReshardCommand)
def reshard(
    repo: options.RepoArg,
    out: options.OutArg,
    given: dict[str, Any],
    how: options.ProgressOpt = "auto",
    as_json: options.JsonOpt = False,
) -> None:
    """Write the files of each rank, and a manifest with their digests.

    Reads each byte of the checkpoint once, in constant memory. Give a plan file (--plan), or --tp and the options of
    `plan`.

    The same command resumes a run that was killed or failed, and does nothing once its result is complete.
    """
    from dsv4_shard.opening import is_url

    stored = is_url(out)
    if not stored and ("scratch" in given or "keep_scratch" in given):
        raise UsageError(f"--scratch, --keep-scratch: {out} is a folder, and made in its own place")
    if "download" in given or "ray" in given:
        gc.enable()  # bytes move before any task begins
    try:
        if "dry_run" in given:
            _show_dry_run(would_reshard(repo, out, DryRunOptions.of(only(given, DryRunOptions))), as_json)
        elif "ray" in given:
            _refuse_beside_ray(given)
            _reshard_on_cluster(repo, out, how, as_json, only(given, ClusterOptions))
        elif stored:
            _reshard_to_store(repo, out, how, as_json, only(given, StoreOptions))
        else:
            _reshard(repo, out, how, as_json, only(given, ReshardOptions))
    except NothingToDo as error:
        _show_nothing_done(error, out, as_json, "dry_run" in given)


def _show_nothing_done(error: NothingToDo, out: str, as_json: bool, is_dry: bool) -> None:
    from dsv4_shard.destinations import nothing_done

    print(clean(str(error)), file=sys.stderr)
    if as_json:
        _print_json(nothing_done(Path(out), error, is_dry))


def _reshard(repo: str, out: str, how: str, as_json: bool, given: dict[str, Any]) -> None:
    """Run `reshard` into a folder."""
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.written import show_outcome

    console, log = _consoles()
    with progress_as(how, log, as_json=as_json) as progress:
        outcome = dsv4_shard.reshard(repo, out, progress=progress, **given)
    if as_json:
        _print_json(outcome)
    else:
        show_outcome(console, outcome, progress.seconds)


def _reshard_to_store(repo: str, out: str, how: str, as_json: bool, given: dict[str, Any]) -> None:
    """Run `reshard` into an object store."""
    from dsv4_shard.destinations import scratch_result
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.written import show_outcome, show_upload

    console, log = _consoles()

    def show_written(outcome: "Outcome") -> None:
        if not as_json:
            show_outcome(console, outcome, progress.seconds)

    with progress_as(how, log, as_json=as_json, on_written=show_written) as progress:
        uploaded = dsv4_shard.reshard_to_store(repo, out, progress=progress, **given)
    if as_json:
        _print_json(uploaded)
    else:
        kept = scratch_result(Path(given.get("scratch", "")), uploaded.out) if "keep_scratch" in given else None
        show_upload(console, uploaded, progress.seconds, kept)


def _refuse_beside_ray(given: dict[str, Any]) -> None:
    """Raise UsageError for options that make no sense with `--ray`, which writes all ranks, a share per node."""
    for name, why, hint in (
        ("ranks", "all ranks are written, a share on each node", "Leave out --ranks, or --ray."),
        ("overwrite", "each share would replace those of the others", "Remove an earlier result first."),
        ("download", "each node fetches what its ranks need", "Leave out --download."),
    ):
        if name in given:
            raise UsageError(f"--ray and --{name}: {why}", hint=hint)


def _reshard_on_cluster(repo: str, out: str, how: str, as_json: bool, given: dict[str, Any]) -> None:
    """Run `reshard` on the nodes of a Ray cluster; exit code 1 if the written shares are not verified."""
    from rich.console import Console

    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.verification import show_together
    from dsv4_shard.terminal.written import show_cluster

    # Ray prints to sys.stderr, which is redirected meanwhile: this console keeps the stream itself.
    log = Console(file=sys.stderr, highlight=False, emoji=False)
    started = time.monotonic()
    with progress_as(how, log, as_json=as_json) as progress:
        outcome = dsv4_shard.reshard_on_cluster(repo, out, progress=progress, **given)
    if as_json:
        _print_json(outcome)
    else:
        console = _consoles()[0]
        show_cluster(console, outcome, time.monotonic() - started)
        show_together(console, outcome.verification, None)
    if not outcome.verification.ok:
        raise typer.Exit(ExitCode.NO)


def _show_dry_run(would: "WouldWrite", as_json: bool) -> None:
    """Show what would be written; exit code 4 if there is no room for it."""
    from dsv4_shard.terminal.written import show_dry_run

    dry = would.document()
    if as_json:
        _print_json(dry)
    else:
        show_dry_run(_consoles()[0], would, dry)
    if not dry.fits:
        raise typer.Exit(ExitCode.IO)


@app.command(cls=HelpCommand)
@reported
@options.takes(MergeCommand)
def merge(
    ranks: options.RanksArg,
    out: options.OutFolderArg,
    given: dict[str, Any],
    how: options.ProgressOpt = "auto",
    as_json: options.JsonOpt = False,
) -> None:
    """Merge the shards of all ranks into one checkpoint.

    Restores its names, files and bytes. Tensors that the shards hold in another form (wo_a decoded, experts cast) stay
    in it, and are listed.

    The same command resumes a run that ended early, and does nothing once its result is complete.
    """
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.written import show_merge

    if "dry_run" in given:
        try:
            _show_dry_run(would_merge(ranks, out, MergeDryRunOptions.of(only(given, MergeDryRunOptions))), as_json)
        except NothingToDo as error:
            _show_nothing_done(error, out, as_json, True)
        return
    console, log = _consoles()
    with progress_as(how, log, as_json=as_json) as progress:
        merged = dsv4_shard.merge(ranks, out, progress=progress, **only(given, MergeOptions))
    if as_json:
        _print_json(merged)
    else:
        show_merge(console, merged, progress.seconds)


@app.command(cls=HelpCommand)
@reported
@options.takes(VerifyCommand)
def verify(
    out: options.ResultsArg,
    given: dict[str, Any],
    how: options.ProgressOpt = "auto",
    as_json: options.JsonOpt = False,
) -> None:
    """Compare a result with its manifest, or with the checkpoint.

    With --against, derives every byte again from the checkpoint and compares. With --signature, compares every file
    with what its signer signed.
    """
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.verification import show_together, show_unknown, show_verification
    from dsv4_shard.verification import SharesVerification, Verification

    console, log = _consoles()
    if len(out) > 1 and (alone := [name for name in names_of(SignatureToVerify) if name in given]):
        raise UsageError(f"{as_option(alone[0])}: a signature is of one folder", hint="Verify each folder by itself.")
    found: Verification | SharesVerification
    with progress_as(how, log, as_json=as_json) as progress:
        if len(out) == 1:
            found = dsv4_shard.verify(out[0], progress=progress, **given)
        else:
            found = dsv4_shard.verify_shares(out, progress=progress, **given)
    if as_json:
        _print_json(found)
    elif isinstance(found, Verification):
        show_verification(console, found, found.numerics)
        show_unknown(console, [found])
    else:
        show_together(console, found, found.numerics)
        show_unknown(console, found.folders)
    if not found.ok:
        raise typer.Exit(ExitCode.NO)


@app.command(cls=HelpCommand)
@reported
@options.takes(SignCommand)
def sign(
    out: options.ResultArg,
    given: dict[str, Any],
    how: options.ProgressOpt = "auto",
    as_json: options.JsonOpt = False,
) -> None:
    """Sign every file of a result.

    Writes a signature of OpenSSF model_signing, whose own command verifies it too. Needs the extra `sign`.
    """
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.written import show_signed

    console, log = _consoles()
    with progress_as(how, log, as_json=as_json) as progress:
        signed = dsv4_shard.sign(out, progress=progress, **given)
    if as_json:
        _print_json(signed)
    else:
        show_signed(console, signed)


@app.command(cls=HelpCommand)
@reported
@options.takes(ExplainOptions)
def explain(given: dict[str, Any], text: options.TextArg = None, as_json: options.JsonOpt = False) -> None:
    """Explain an engine's message: what broke, and what helps.

    In a log, finds the first message that ends a run; colours, prefixes and other ranks do not matter.
    """
    from dsv4_shard.terminal.explanation import show_explanation

    gc.enable()  # a log from a pipe may take days
    explanation = dsv4_shard.explain(text_or_log(text), **given)
    if as_json:
        _print_json(explanation)
    else:
        show_explanation(_consoles()[0], explanation)
    if not explanation.recognised:
        raise typer.Exit(ExitCode.NO)


@app.command(cls=HelpCommand)
@reported
def gpus(as_json: options.JsonOpt = False) -> None:
    """List the GPUs that --gpu names, with their memory."""
    from dsv4_shard.terminal.gpu_list import list_gpus, show_gpus

    if as_json:
        _print_json(list_gpus())
    else:
        show_gpus(_consoles()[0], list_gpus())


@app.command(cls=HelpCommand)
@reported
def demo(
    folder: options.DemoArg = Path("dsv4-demo"),
) -> None:
    """Inspect, plan, reshard, verify and report a small checkpoint.

    Generates a 121 MB checkpoint with V4-Pro's structure (4 layers, 16 experts). Takes under a minute and 250 MB.
    """
    from dsv4_shard.checkpoint.synthetic import write_checkpoint
    from dsv4_shard.storage import check_output
    from dsv4_shard.terminal.text import paragraph

    try:
        check_output(folder, Path(__file__).parent, overwrite=False)
    except OutputNotEmpty as error:
        error.hint = f"Remove it, or name another folder: `dsv4-shard demo {folder}-2`."
        raise
    checkpoint, shards, plan_file = folder / "checkpoint", folder / "shards", folder / "plan.json"
    page = folder / "report.html"
    folder.mkdir(exist_ok=True)
    console = _consoles()[0]
    paragraph(console, f"A checkpoint with DeepSeek-V4-Pro's structure, 4 layers and 16 experts small: {checkpoint}")
    write_checkpoint(checkpoint)
    numerics = ["--numerics"] if importlib.util.find_spec("torch") else []
    if not numerics:
        paragraph(console, "torch is not installed: verify compares bytes, and leaves out --numerics.")
    commands = (
        ["inspect", str(checkpoint)],
        ["plan", str(checkpoint), "--tp", "16", "-o", str(plan_file)],
        ["reshard", str(checkpoint), str(shards), "--plan", str(plan_file)],
        ["verify", str(shards), "--against", str(checkpoint), *numerics],
        ["report", str(plan_file), "-o", str(page)],
    )
    for arguments in commands:
        print(f"\n$ dsv4-shard {' '.join(arguments)}", flush=True)
        if code := app(arguments, standalone_mode=False):
            raise typer.Exit(code)
    console.print()
    for line in (f"The checkpoint is in {checkpoint},", f"its 16 ranks in {shards},", f"the plan in {plan_file},",
                 f"and what to look at in {page}."):  # fmt: skip
        paragraph(console, line)


def main() -> None:
    """Run the command line: the entry point."""
    open_standard_streams()
    if os.environ.get(completion.ASKED):
        completion.answer(app)
    handle_signals(OUTSIDE)
    gc.disable()  # headers stay in memory until the command ends; collecting them takes half a second
    allow_open_files()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            show_signs(stream)
    try:
        app()
    finally:
        gc.freeze()  # the interpreter's end would look through all of them once more
