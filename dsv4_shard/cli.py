"""The commands: parse, call, show. Results go to stdout, everything else to stderr."""

import dataclasses
import functools
import gc
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn, ParamSpec, TypeVar

import typer

from dsv4_shard import __version__
from dsv4_shard.errors import ExitCode, RanksThere, ShardError, UnsupportedFamily, UsageError
from dsv4_shard.escape import clean
from dsv4_shard.terminal.signs import show_signs

if TYPE_CHECKING:
    from rich.console import Console

    from dsv4_shard.checkpoint import Checkpoint
    from dsv4_shard.engines.base import Request
    from dsv4_shard.inventory import Inventory
    from dsv4_shard.plan import Plan
    from dsv4_shard.reshard import Job, Outcome
    from dsv4_shard.sharework import Order

app = typer.Typer(
    name="dsv4-shard",
    help="From a DeepSeek-V4 checkpoint to a deployment plan to verified per-rank shards.",
    epilog="Exit codes: 0 done, 1 a result that says no, 2 usage, 3 bad checkpoint, 4 I/O, 5 network, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_OPEN_FILES = 1 << 16
_MAX_PATH = 4096
_AUTO = "auto"
"""For --ranks: those that the process's launcher leaves to it."""

P = ParamSpec("P")
R = TypeVar("R")


def _reported(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a ShardError into its message, its hint and its exit code; anything else is a bug and keeps its trace."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ShardError as error:
            _fail(error)
        except KeyboardInterrupt as error:
            print("interrupted", file=sys.stderr)
            _print_notes(error)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except SystemExit as error:
            _print_notes(error)
            raise
        except BrokenPipeError:
            # Whoever read our output has gone; Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.DONE) from None

    return command


def _fail(error: ShardError) -> NoReturn:
    print(f"error: {clean(str(error))}", file=sys.stderr)
    if error.hint:
        print(f"  {clean(error.hint)}", file=sys.stderr)
    _print_notes(error)
    raise typer.Exit(error.exit_code)


def _print_notes(error: BaseException) -> None:
    """What is left behind after an error, if anything."""
    for note in getattr(error, "__notes__", ()):
        print(f"  {clean(note)}", file=sys.stderr)


def _consoles() -> tuple["Console", "Console"]:
    from dsv4_shard.terminal.console import consoles

    return consoles()


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def _open(
    repo: str, config: Path | None = None, *, refresh: bool = False, exact: bool = True
) -> tuple["Checkpoint", "Inventory"]:
    """The checkpoint that `repo` names, or the one that the rank shards in that folder make up; see `open_source`."""
    from dsv4_shard.checkpoint import read_checkpoint
    from dsv4_shard.inventory import take_inventory
    from dsv4_shard.rankfolder import holds_ranks
    from dsv4_shard.sources import LocalSource, open_source

    with _kept():
        source = open_source(repo, refresh=refresh, exact=exact)
        if holds_ranks(source):
            from dsv4_shard.ranks import open_ranks

            if not isinstance(source, LocalSource):
                raise UsageError(f"{repo}: shards of ranks, which are read from folders only", hint="Download them.")
            return open_ranks(source, config)
        if config is not None:
            raise UsageError(f"--config: {repo} is a checkpoint, with a config.json of its own")
        checkpoint = read_checkpoint(source)
        return checkpoint, take_inventory(checkpoint)


@contextmanager
def _kept() -> Iterator[None]:
    """What is built within lives as long as the command: no collection of garbage need look through it."""
    from dsv4_shard.checkpoint import collector_paused

    with collector_paused():
        yield
        gc.freeze()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dsv4-shard {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# --- options that several commands share ---------------------------------------------------------------------------

RepoArg = Annotated[
    str, typer.Argument(help="Checkpoint: a folder, org/name[@revision] on the Hub, or s3://, gs://, az://.")
]
RefreshOpt = Annotated[
    bool, typer.Option("--refresh", help="Ask the Hub where the branch is, though it was asked within the hour.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
EpOpt = Annotated[int | None, typer.Option("--ep", min=1, help="Expert parallelism; default: the engine's.")]
DpOpt = Annotated[
    int, typer.Option("--dp", min=1, help="SGLang, TensorRT-LLM: attention DP inside TP. vLLM: replicas.")
]
EngineOpt = Annotated[
    str,
    typer.Option(
        "--engine", help="sglang, vllm, reference, node (a folder a node) or trtllm; with --gpus several, by commas."
    ),
]
RunnerOpt = Annotated[
    str | None,
    typer.Option("--runner", help="MoE runner or backend (marlin, flashinfer_mxfp4, ...); default: engine's."),
]
A2aOpt = Annotated[str | None, typer.Option("--a2a", help="SGLang's all-to-all backend (deepep, megamoe, ...).")]
SharedOpt = Annotated[str, typer.Option("--shared-experts", help="auto, whole, split or pad.")]
GpuOpt = Annotated[str | None, typer.Option("--gpu", help="h20-96, h20-141, h100, h200, b200, b300, gb200, gb300, ...")]
GpuMemoryOpt = Annotated[
    str | None, typer.Option("--gpu-memory", help="Instead of --gpu: a Hopper GPU of 96GB, 95GiB or 97285MiB.")
]
NodesOpt = Annotated[int | None, typer.Option("--nodes", min=1, help="Hosts; default: as few as hold the GPUs.")]
ExpertDtypeOpt = Annotated[
    str | None, typer.Option("--expert-dtype", help="fp8: cast FP4 experts as DeepSeek's converter does (reference).")
]
VersionOpt = Annotated[str | None, typer.Option("--engine-version", help="Default: the newest that is known.")]
ConfigOpt = Annotated[
    Path | None, typer.Option("--config", help="config.json for shards of DeepSeek's converter, which have none.")
]
JobsOpt = Annotated[int | None, typer.Option("--jobs", min=1, help="Worker threads; default: the CPUs, at most 8.")]


_REQUEST_OPTIONS = (
    "tp", "ep", "dp", "engine", "runner", "a2a", "shared_experts", "gpu", "nodes", "expert_dtype", "engine_version",
    "gpu_memory",
)  # fmt: skip


def _request(
    tp: int,
    ep: int | None,
    dp: int,
    engine: str,
    runner: str | None,
    a2a: str | None,
    shared: str,
    gpu: str | None,
    nodes: int | None,
    expert_dtype: str | None,
    engine_version: str | None,
    gpu_memory: str | None,
) -> "Request":
    from dsv4_shard.engines import find_engine
    from dsv4_shard.engines.base import Request

    name = find_engine(engine).name
    return Request(tp, ep, dp, name, runner, a2a, shared, gpu, nodes, expert_dtype, engine_version, gpu_memory)


# --- commands ------------------------------------------------------------------------------------------------------


@app.command()
@_reported
def inspect(
    repo: RepoArg,
    tp: Annotated[str, typer.Option("--tp", help="Candidate TP sizes, separated by commas.")] = "1,2,4,8,16,32,64",
    refresh: RefreshOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """What a checkpoint is and holds, what is wrong with it, and at which TP each engine can run it.

    Reads headers only. Exit code 3 if the checkpoint has errors. Of families that are not known: what they hold, and
    where whole blocks divide.
    """
    from dsv4_shard import recent
    from dsv4_shard.inspect import inspect as make_inspection
    from dsv4_shard.terminal.inspection import show_inspection

    try:
        checkpoint, inventory = _open(repo, refresh=refresh, exact=False)
    except UnsupportedFamily:
        _inspect_unknown(repo, _numbers(tp, "--tp"), as_json)
        return
    recent.remember(repo)
    inspection = make_inspection(checkpoint, inventory, _numbers(tp, "--tp"))
    if as_json:
        _print_json(inspection.model_dump(mode="json"))
    else:
        show_inspection(_consoles()[0], inspection)
    if inspection.has_errors:
        raise typer.Exit(ExitCode.CHECKPOINT)


@app.command()
@_reported
def plan(
    context: typer.Context,
    repo: Annotated[
        str | None, typer.Argument(help="Checkpoint; default: the current folder, else the one last inspected.")
    ] = None,
    tp: Annotated[int | None, typer.Option("--tp", min=1, help="Tensor parallelism.")] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Instead of --tp: search all layouts on so many GPUs.")
    ] = None,
    ep: EpOpt = None,
    dp: DpOpt = 1,
    engine: EngineOpt = "sglang",
    runner: RunnerOpt = None,
    a2a: A2aOpt = None,
    shared_experts: SharedOpt = "auto",
    gpu: GpuOpt = None,
    gpu_memory: GpuMemoryOpt = None,
    nodes: NodesOpt = None,
    expert_dtype: ExpertDtypeOpt = None,
    engine_version: VersionOpt = None,
    refresh: RefreshOpt = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the plan to this file.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", metavar="A B", help="What differs between two plan files.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Where every module goes on the ranks, what it weighs, whether it runs, and how it is launched.

    Exit code 1 if the layout does not run; the plan then names the rule that breaks and the nearest layouts that do.
    With --gpus in place of --tp, every layout that runs on so many GPUs, the lightest first (--engine sglang,vllm: of
    these engines only); exit code 1 if none does.
    With --compare nothing is planned: exit code 0, whether the two plans differ or not.
    """
    if compare is not None:
        _compare(context, *compare, as_json)
        return
    if gpus is not None:
        _refuse_beside_gpus(context)
        engines = tuple(engine.split(",")) if _is_given(context, "engine") else None
        asked = _request(
            gpus, None, 1, "sglang", None, None, "auto", gpu, nodes, expert_dtype, engine_version, gpu_memory
        )
        _search(repo or _default_repo(), asked, engines, refresh, output, as_json)
        return
    if tp is None:
        raise UsageError(
            "neither --tp nor --gpus",
            hint="Plan a layout: `dsv4-shard plan REPO --tp 16`; or search them all: `dsv4-shard plan REPO --gpus 16`.",
        )
    from dsv4_shard.engines import engine_for
    from dsv4_shard.plan import make_plan
    from dsv4_shard.terminal.planning import show_plan

    request = _request(
        tp, ep, dp, engine, runner, a2a, shared_experts, gpu, nodes, expert_dtype, engine_version, gpu_memory
    )
    checkpoint, inventory = _open(repo or _default_repo(), refresh=refresh, exact=False)
    made = make_plan(checkpoint, inventory, request)
    if output is not None:
        _write_text(output, made.to_json())
    if as_json:
        print(made.to_json(), end="")
    else:
        title = engine_for(request.engine, inventory.family).title
        show_plan(_consoles()[0], made, title, str(output) if output else None)
    if not made.feasible:
        raise typer.Exit(ExitCode.NO)


def _search(
    repo: str,
    asked: "Request",
    engines: tuple[str, ...] | None,
    refresh: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    from dsv4_shard.engines import SERVING
    from dsv4_shard.search import plan_best
    from dsv4_shard.search import search as find
    from dsv4_shard.terminal.searching import show_search

    checkpoint, inventory = _open(repo, refresh=refresh, exact=False)
    found = find(checkpoint, inventory, asked, engines or SERVING)
    if output is not None and found.best is not None:
        _write_text(output, plan_best(checkpoint, inventory, found).to_json())
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        show_search(_consoles()[0], found)
    if found.best is None:
        raise typer.Exit(ExitCode.NO)


@app.command()
@_reported
def reshard(
    context: typer.Context,
    repo: RepoArg,
    out: Annotated[str, typer.Argument(help="Folder to make, or s3://, gs://, az://; a result only when complete.")],
    plan_file: Annotated[Path | None, typer.Option("--plan", help="Follow this plan (made by `plan -o`).")] = None,
    tp: Annotated[int | None, typer.Option("--tp", min=1, help="Tensor parallelism, if there is no plan.")] = None,
    ep: EpOpt = None,
    dp: DpOpt = 1,
    engine: EngineOpt = "sglang",
    runner: RunnerOpt = None,
    a2a: A2aOpt = None,
    shared_experts: SharedOpt = "auto",
    gpu: GpuOpt = None,
    gpu_memory: GpuMemoryOpt = None,
    nodes: NodesOpt = None,
    expert_dtype: ExpertDtypeOpt = None,
    engine_version: VersionOpt = None,
    ranks: Annotated[
        str | None,
        typer.Option("--ranks", help="Write only these ranks (node: nodes): 0-7 or 0,2,4; auto: torchrun, srun."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what an unfinished run left.")] = False,
    allow_inexact: Annotated[bool, typer.Option("--allow-inexact", help="Let the FP8 cast round.")] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Hub: first download the files that are needed into the Hub cache.")
    ] = False,
    scratch: Annotated[
        Path | None, typer.Option("--scratch", help="OUT is a URL: where the files are made first; default: here.")
    ] = None,
    keep_scratch: Annotated[bool, typer.Option("--keep-scratch", help="Keep them after the upload.")] = False,
    config: ConfigOpt = None,
    jobs: JobsOpt = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Share the ranks out over a Ray cluster; auto: this machine's."),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Write one file a rank, each source byte read once, and a manifest that proves what was written.

    A run that was killed or failed goes on where it was when the same command is given again.
    """
    from dsv4_shard.copying import files_of
    from dsv4_shard.hub import with_download
    from dsv4_shard.output import check_output
    from dsv4_shard.reshard import prepare, result_to_join
    from dsv4_shard.sources import is_url

    if not is_url(out) and (scratch is not None or keep_scratch):
        raise UsageError(f"--scratch, --keep-scratch: {out} is a folder, and made in its own place")
    if plan_file is not None:
        _refuse_beside_plan(context)
    checkpoint, inventory = _open(_pinned(repo, plan_file), config)
    request = (
        _request(tp, ep, dp, engine, runner, a2a, shared_experts, gpu, nodes, expert_dtype, engine_version, gpu_memory)
        if tp is not None
        else None
    )
    made = _plan_for(checkpoint, inventory, plan_file, request)
    if ray is not None and not dry_run:
        _refuse_url(Path(out), "Nodes write into folders: one that all of them see, or one on the disk of each.")
        if ranks is not None or overwrite:
            raise UsageError(f"--ray and {'--ranks' if ranks is not None else '--overwrite'}: all ranks are written, "
                             "each share beside the others", hint="Remove an earlier result first.")  # fmt: skip
        if download:
            raise UsageError(
                "--ray and --download: each node fetches what its ranks need", hint="Leave out --download."
            )
        from dsv4_shard.sharework import Order

        order = Order(
            _at_commit(repo, checkpoint), config, made.to_json(), Path(out), _open, (), jobs, allow_inexact, restart
        )
        _reshard_on_cluster(ray, order, made, inventory, as_json)
        return
    wanted = _ranks(ranks, overwrite, made, inventory)
    if wanted == ():
        return
    with _kept():
        job = prepare(checkpoint, inventory, made, wanted)
    if download and not dry_run:
        checkpoint = with_download(checkpoint, files_of(job.recipe))
    if is_url(out):
        place = _Place(out, scratch or Path(), keep_scratch, overwrite, restart, dry_run, as_json)
        _reshard_to_store(job, checkpoint, place, workers=jobs, allow_inexact=allow_inexact)
        return
    folder = Path(out)
    if dry_run:
        check_output(folder, checkpoint.source.root, overwrite, job.is_share)
        result_to_join(job, folder, overwrite)
        _dry_run(job, checkpoint, folder, as_json)
        return
    try:
        _reshard_to_folder(job, checkpoint, folder, as_json, workers=jobs, overwrite=overwrite,
                           allow_inexact=allow_inexact, restart=restart)  # fmt: skip
    except RanksThere as error:
        if ranks != _AUTO:
            raise
        print(f"{clean(str(error))}: nothing to do", file=sys.stderr)  # others of the launch may have more to do


@app.command()
@_reported
def merge(
    ranks: Annotated[str, typer.Argument(help="Folder of rank shards: reshard's, or DeepSeek's converter's.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; appears only when it is complete.")],
    config: ConfigOpt = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what an unfinished run left.")] = False,
    jobs: JobsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Put the shards of all ranks together again: one checkpoint, in its own names, files and bytes.

    What the shards have not kept (wo_a decoded, experts cast) is as they hold it, and is said. A run that ended early
    goes on where it was when the same command is given again.
    """
    from dsv4_shard.merge import prepare_merge, source_of_ranks
    from dsv4_shard.output import check_output
    from dsv4_shard.progress import Progress
    from dsv4_shard.reshard import reshard as write
    from dsv4_shard.terminal.writing import show_merge

    _refuse_url(out, "Name a folder, and copy it to the store.")
    checkpoint, inventory = _open(ranks, config)
    source = source_of_ranks(checkpoint)
    with _kept():
        job = prepare_merge(checkpoint, inventory)
    if dry_run:
        check_output(out, source.root, overwrite)
        _dry_run(job, checkpoint, out, as_json)
        return
    console, log = _consoles()
    with Progress(log, "merge", sum(file.payload for file in job.recipe.files), quiet=as_json) as progress:
        outcome = write(job, checkpoint, out, workers=jobs, overwrite=overwrite, restart=restart,
                        on_progress=progress.advance, on_resume=progress.resume)  # fmt: skip
    if as_json:
        _print_json(_outcome(outcome) | {"notes": source.notes, "changes": [c._asdict() for c in source.changes]})
    else:
        show_merge(console, outcome, progress.seconds, source)


@app.command()
@_reported
def verify(
    out: Annotated[list[Path], typer.Argument(help="A folder that reshard made, or those of shares, as one result.")],
    against: Annotated[str | None, typer.Option("--against", help="The checkpoint it was made from.")] = None,
    numerics: Annotated[
        bool, typer.Option("--numerics", help="Also add up the experts of a layer (--against).")
    ] = False,
    layer: Annotated[int | None, typer.Option("--layer", help="The layer for --numerics; default: the last.")] = None,
    jobs: JobsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Prove a result against its manifest, or byte by byte against the checkpoint. Exit code 1 if anything differs."""
    from dsv4_shard.numerics import check_numerics
    from dsv4_shard.progress import Progress
    from dsv4_shard.terminal.verifying import show_together, show_verification
    from dsv4_shard.together import verify_together
    from dsv4_shard.verify import Verification, bytes_to_verify
    from dsv4_shard.verify import verify as check

    for folder in out:
        _refuse_url(
            folder, "Copy it into a folder, and verify that; what `reshard` put was held against the store's sizes."
        )
    if numerics and against is None:
        raise UsageError("--numerics needs --against: the unsharded layer is in the checkpoint")
    if layer is not None and not numerics:
        raise UsageError("--layer is of --numerics", hint="Add --numerics, or leave out --layer.")
    source = _open(against) if against is not None else None
    console, log = _consoles()
    with Progress(log, "verify", sum(map(bytes_to_verify, out)), quiet=as_json) as progress:
        options: dict[str, Any] = {"workers": jobs, "on_progress": progress.advance}
        found = verify_together(out, source, **options) if len(out) > 1 else check(out[0], source, **options)
    sums = check_numerics(out, *source, layer) if numerics and source is not None and found.ok else None
    if as_json:
        document = found.model_dump(mode="json") | {"ok": found.ok}
        _print_json(document | ({"numerics": sums.model_dump(mode="json")} if sums else {}))
    elif isinstance(found, Verification):
        show_verification(console, found, sums)
    else:
        show_together(console, found, sums)
    if not found.ok or (sums is not None and not sums.ok):
        raise typer.Exit(ExitCode.NO)


@app.command()
@_reported
def explain(
    text: Annotated[
        str | None,
        typer.Argument(help="What the engine printed, or its log: a file, or - for stdin (default: a pipe)."),
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", help="Hold it against this checkpoint, not against the releases' sizes.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """What an engine's message means: what broke, in numbers, and the way out.

    Of a log, the first message that ends a run counts. Exit code 1 if nothing in it is known.
    """
    from dsv4_shard.explain import Model
    from dsv4_shard.explain import explain as make_explanation
    from dsv4_shard.plan import refuse_errors
    from dsv4_shard.terminal.explaining import show_explanation

    model = None
    if repo is not None:
        model = Model(repo, _open(repo, exact=False)[1], given=True)
        refuse_errors(model.inventory)
    with _log(text) as lines:
        explanation = make_explanation(lines, model)
    if as_json:
        _print_json(explanation.model_dump(mode="json"))
    else:
        show_explanation(_consoles()[0], explanation)
    if not explanation.recognised:
        raise typer.Exit(ExitCode.NO)


@app.command()
@_reported
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put the demo's files.")] = Path("dsv4-demo"),
) -> None:
    """Make a small checkpoint with V4-Pro's structure, then inspect, plan, reshard and verify it."""
    from dsv4_shard.demo import write_checkpoint
    from dsv4_shard.output import check_output
    from dsv4_shard.terminal.text import paragraph

    check_output(folder, Path(__file__).parent, overwrite=False)
    checkpoint, shards, plan_file = folder / "checkpoint", folder / "shards", folder / "plan.json"
    folder.mkdir(exist_ok=True)
    console = _consoles()[0]
    paragraph(console, f"A checkpoint with DeepSeek-V4-Pro's structure, 4 layers and 16 experts small: {checkpoint}")
    write_checkpoint(checkpoint)
    commands = (
        ["inspect", str(checkpoint)],
        ["plan", str(checkpoint), "--tp", "16", "-o", str(plan_file)],
        ["reshard", str(checkpoint), str(shards), "--plan", str(plan_file)],
        ["verify", str(shards), "--against", str(checkpoint), "--numerics"],
    )
    for arguments in commands:
        print(f"\n$ dsv4-shard {' '.join(arguments)}", flush=True)
        app(arguments, standalone_mode=False)
    console.print()
    for line in (f"The checkpoint is in {checkpoint},", f"its 16 ranks in {shards},", f"the plan in {plan_file}."):
        paragraph(console, line)


# --- parts of the commands -----------------------------------------------------------------------------------------


def _inspect_unknown(repo: str, tps: tuple[int, ...], as_json: bool) -> None:
    """`inspect` of a family that is not known, which no other command takes."""
    from dsv4_shard import recent
    from dsv4_shard.checkpoint import read_unknown
    from dsv4_shard.generic import inspect_unknown
    from dsv4_shard.sources import open_source
    from dsv4_shard.terminal.unknown import show_unknown

    with _kept():
        checkpoint = read_unknown(open_source(repo))
    recent.remember(repo)
    inspection = inspect_unknown(checkpoint, tps)
    if as_json:
        _print_json(inspection.model_dump(mode="json"))
    else:
        show_unknown(_consoles()[0], inspection)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f"{option} {text!r}: not numbers separated by commas") from None
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{option} {text!r}: must be at least 1")
    return numbers


def _reshard_on_cluster(address: str, order: "Order", plan: "Plan", inventory: "Inventory", as_json: bool) -> None:
    """Write shares on the nodes of a Ray cluster; exit code 1 where what they wrote is not as it should be."""
    from rich.console import Console

    from dsv4_shard.cluster import reshard_on_cluster
    from dsv4_shard.progress import SharesProgress
    from dsv4_shard.reshard import world_of
    from dsv4_shard.terminal.verifying import show_together
    from dsv4_shard.terminal.writing import show_cluster

    console, log = _consoles()[0], Console(file=sys.stderr, highlight=False, emoji=False)
    folder = os.path.expanduser(order.repo)
    repo = os.path.abspath(folder) if os.path.isdir(folder) else order.repo
    config = Path(os.path.abspath(order.config)) if order.config is not None else None
    order = replace(order, repo=repo, config=config, out=Path(os.path.abspath(order.out)))
    nodes = plan.deployment["nodes"]
    with SharesProgress(log, quiet=as_json) as progress:
        outcome = reshard_on_cluster(address, order, world_of(plan, inventory), nodes if nodes > 1 else None, progress)
    if as_json:
        shares = [{"ranks": one.ranks, "node": one.node} | (_outcome(one.outcome) if one.outcome else {})
                  for one in outcome.written]  # fmt: skip
        document = outcome.together.model_dump(mode="json") | {"ok": outcome.together.ok}
        _print_json({"shares": shares, "one_folder": outcome.is_one_folder, "verification": document})
    else:
        show_cluster(console, outcome, progress.seconds)
        show_together(console, outcome.together, None)
    if not outcome.together.ok:
        raise typer.Exit(ExitCode.NO)


def _ranks(text: str | None, overwrite: bool, plan: "Plan", inventory: "Inventory") -> tuple[int, ...] | None:
    """The ranks asked for, None for all; empty, and said, if a launcher started more processes than there are ranks."""
    from dsv4_shard.rankspan import own_share, parse_ranks, share_of
    from dsv4_shard.reshard import world_of

    if text != _AUTO:
        return parse_ranks(text) if text is not None else None
    if overwrite:
        raise UsageError("--ranks auto and --overwrite: each share would replace those of the others",
                         hint="Remove the folder first.")  # fmt: skip
    number, count = own_share(os.environ)
    world = world_of(plan, inventory)
    wanted = share_of(world, number, count)
    if not wanted:
        print(f"process {number} of {count}: there are {world} ranks, nothing to do", file=sys.stderr)
    return wanted


def _default_repo() -> str:
    """The current folder if it is a checkpoint, else the one last inspected; says which."""
    from dsv4_shard import recent
    from dsv4_shard.checkpoint import CONFIG_FILE, INDEX_FILE, SINGLE_FILE

    here = Path.cwd()
    if (here / CONFIG_FILE).is_file() and ((here / INDEX_FILE).is_file() or (here / SINGLE_FILE).is_file()):
        print("planning for the checkpoint in the current folder", file=sys.stderr)
        return str(here)
    last = recent.recall()
    if last is None:
        raise UsageError(
            "no checkpoint named, none in the current folder, and none inspected yet",
            hint="Name one: dsv4-shard plan REPO --tp 16",
        )
    print(f"planning for {clean(last)}, the checkpoint last inspected", file=sys.stderr)
    return last


def _plan_for(
    checkpoint: "Checkpoint", inventory: "Inventory", plan_file: Path | None, request: "Request | None"
) -> "Plan":
    from dsv4_shard.plan import make_plan
    from dsv4_shard.planfile import check_plan, load_plan

    if plan_file is not None:
        return check_plan(load_plan(plan_file), checkpoint, inventory)
    if request is None:
        raise UsageError("neither --plan nor --tp", hint="Give a plan file, or --tp N and the options of `plan`.")
    return make_plan(checkpoint, inventory, request)


def _pinned(repo: str, plan_file: Path | None) -> str:
    """A repository on the Hub at the commit that a plan was made for, where the user named no other."""
    from dsv4_shard.planfile import load_plan
    from dsv4_shard.sources import hub_id

    revision = load_plan(plan_file).source.revision if plan_file is not None and hub_id(repo) == (repo, None) else None
    return f"{repo}@{revision}" if revision else repo


def _at_commit(repo: str, checkpoint: "Checkpoint") -> str:
    """A repository on the Hub with the commit that was opened: who opens it again later gets the same."""
    from dsv4_shard.sources import hub_id

    named, commit = hub_id(repo), checkpoint.source.revision
    return f"{named[0]}@{commit}" if named and commit else repo


def _refuse_beside_plan(context: typer.Context) -> None:
    """A plan says all that a request does: an option beside it would be ignored. Raises UsageError."""
    for name in _REQUEST_OPTIONS:
        if _is_given(context, name):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"--plan and {option}: the plan says it already", hint=f"Leave out {option}, or --plan.")


def _refuse_beside_gpus(context: typer.Context) -> None:
    """The search tries all of these itself. Raises UsageError."""
    for name in ("tp", "ep", "dp", "runner", "a2a", "shared_experts"):
        if _is_given(context, name):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"--gpus and {option}: the search tries them all", hint=f"Leave out {option}, or --gpus.")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_url(folder: Path, hint: str) -> None:
    """Raise UsageError where a folder is wanted and a URL was given, of which a Path keeps one slash."""
    scheme, colon, rest = str(folder).partition(":/")
    if colon and scheme.isalnum() and not folder.exists():
        raise UsageError(f"{scheme}://{rest}: a folder is wanted here, not a URL", hint=hint)


def _reshard_to_folder(job: "Job", checkpoint: "Checkpoint", out: Path, as_json: bool, **options: Any) -> None:
    """Write a result into a folder, and show what was written."""
    from dsv4_shard.progress import Progress
    from dsv4_shard.reshard import reshard as write
    from dsv4_shard.terminal.writing import show_outcome

    console, log = _consoles()
    with Progress(log, "reshard", sum(file.payload for file in job.recipe.files), quiet=as_json) as progress:
        outcome = write(job, checkpoint, out, on_progress=progress.advance, on_resume=progress.resume, **options)
    if as_json:
        _print_json(_outcome(outcome) | {"ranks": outcome.ranks, "world": outcome.world})
    else:
        show_outcome(console, outcome, progress.seconds)


class _Place(NamedTuple):
    """Where a result goes in an object store, and how it is asked for."""

    url: str
    scratch: Path
    keep_scratch: bool
    overwrite: bool
    restart: bool
    dry_run: bool
    as_json: bool


def _reshard_to_store(job: "Job", checkpoint: "Checkpoint", place: _Place, **options: Any) -> None:
    """Write a result into a scratch folder, unless it is there, and put it into a store."""
    from dsv4_shard.progress import Progress
    from dsv4_shard.reshard import reshard as write
    from dsv4_shard.stores import connect
    from dsv4_shard.terminal.writing import show_outcome, show_upload
    from dsv4_shard.upload import Scratch, check_place, nbytes_of, run_digest, upload

    store = connect(place.url)
    scratch = Scratch(place.scratch, store.url, run_digest(job, checkpoint), restart=place.restart)
    if place.dry_run:
        check_place(store, scratch, place.overwrite)
        out = scratch.result if scratch.path.is_dir() else scratch.path
        _dry_run(job, checkpoint, out, place.as_json, store.url)
        return
    console, log = _consoles()
    with scratch:
        check_place(store, scratch, place.overwrite)
        outcome = None
        if not scratch.is_written:
            total = sum(file.payload for file in job.recipe.files)
            with Progress(log, "reshard", total, quiet=place.as_json) as progress:
                outcome = write(job, checkpoint, scratch.result, restart=place.restart, on_progress=progress.advance,
                                on_resume=progress.resume, **options)  # fmt: skip
            if not place.as_json:
                show_outcome(console, outcome, progress.seconds)
        with Progress(log, "upload", nbytes_of(scratch.manifest), quiet=place.as_json) as progress:
            uploaded = upload(store, scratch, overwrite=place.overwrite, on_progress=progress.advance,
                              on_resume=progress.resume)  # fmt: skip
        scratch.is_done = not place.keep_scratch
    if place.as_json:
        written = _outcome(outcome) if outcome else None
        _print_json(dataclasses.asdict(uploaded) | {"written": written})
    else:
        show_upload(console, uploaded, progress.seconds, scratch.result if place.keep_scratch else None)


@contextmanager
def _log(text: str | None) -> Iterator[Iterator[tuple[int, str]]]:
    """Numbered lines of a message, of a log by its name, or of stdin. Raises UsageError, ReadFailed."""
    from dsv4_shard.errors import ReadFailed
    from dsv4_shard.logs import lines_of

    if text == "-" or (text is None and not sys.stdin.isatty()):
        yield lines_of(sys.stdin.buffer)
    elif text is None or not text.strip():
        raise UsageError(
            "nothing to explain", hint='Give the message or a log: dsv4-shard explain "TEXT", or LOG, or -'
        )
    elif "\0" not in text and len(text) < _MAX_PATH and os.path.isfile(text):
        try:
            with open(text, "rb") as file:
                yield lines_of(file)
        except OSError as error:
            raise ReadFailed(f"{text}: {error.strerror}") from None
    else:
        yield lines_of(io.BytesIO(text.encode(errors="replace")))


def _compare(context: typer.Context, a: Path, b: Path, as_json: bool) -> None:
    """`plan --compare`, which takes no other option: the files say it all. Raises UsageError or BadPlan."""
    from dsv4_shard.plandiff import compare_plans
    from dsv4_shard.planfile import load_plan
    from dsv4_shard.terminal.comparing import show_comparison

    for name in context.params:
        if name not in ("compare", "as_json") and _is_given(context, name):
            option = "REPO" if name == "repo" else "--" + name.replace("_", "-")
            raise UsageError(f"--compare and {option}: plan files are taken as they are", hint=f"Leave out {option}.")
    comparison = compare_plans(load_plan(a), load_plan(b), (str(a), str(b)))
    if as_json:
        _print_json(comparison.model_dump(mode="json"))
    else:
        show_comparison(_consoles()[0], comparison)


def _outcome(outcome: "Outcome") -> dict[str, Any]:
    """What a run wrote, for --json."""
    return {"out": str(outcome.out), "files": outcome.files, "linked": outcome.linked, "bytes": outcome.nbytes,
            "bytes_resumed": outcome.resumed, "bytes_read": outcome.bytes_read,
            "intact": outcome.intact, "inexact": outcome.inexact}  # fmt: skip


def _dry_run(job: "Job", checkpoint: "Checkpoint", out: Path, as_json: bool, url: str | None = None) -> None:
    """Show what would be written; exit code 4 if there is no room for it. `out` is the scratch result of a `url`."""
    from dsv4_shard.commit import Staging
    from dsv4_shard.output import free_bytes
    from dsv4_shard.terminal.writing import show_dry_run

    # What an unfinished run left there is gone on with, or makes room.
    needed = job.nbytes_to_write(checkpoint.source, out)
    free = free_bytes(out) + Staging(out, job.share).nbytes_on_disk()
    if as_json:
        _print_json({"files": {file.name: file.nbytes for file in job.recipe.files}, "bytes": needed,
                     "free": free, "left_out": job.recipe.left_out})  # fmt: skip
    else:
        show_dry_run(_consoles()[0], job, url or str(out), needed, free)
    if free < needed:
        raise typer.Exit(ExitCode.IO)


def _write_text(path: Path, text: str) -> None:
    from dsv4_shard.errors import WriteFailed

    try:
        path.write_text(text)
    except OSError as error:
        raise WriteFailed(f"{path}: {error.strerror}") from error


def _on_sigterm(*_: object) -> NoReturn:
    """Leave as after an error, so that what was done is saved."""
    sys.exit(128 + signal.SIGTERM)


def _allow_open_files() -> None:
    """Raise the soft limit: a run holds the checkpoint's files and the ranks' open, which may be hundreds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    _allow_open_files()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            show_signs(stream)
    app()
