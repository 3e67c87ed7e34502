"""`reshard`: the files of each rank, in a folder, in an object store, or on the nodes of a cluster."""

import gc
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import dsv4_shard
from dsv4_shard.commands.dry_run import show_nothing_done, show_would_write
from dsv4_shard.errors import ExitCode, NothingToDo, UsageError
from dsv4_shard.reshard import would_reshard
from dsv4_shard.sharding.options import (
    ClusterOptions,
    DryRunOptions,
    ReshardCommand,
    ReshardOptions,
    StoreOptions,
)
from dsv4_shard.terminal import options
from dsv4_shard.terminal.arguments import only
from dsv4_shard.terminal.output import log_console, output_console, show
from dsv4_shard.terminal.process import reported

if TYPE_CHECKING:
    from dsv4_shard.sharding.outcome import Outcome


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
        option = "--scratch" if "scratch" in given else "--keep-scratch"
        raise UsageError(f"{option}: {out} is a folder, not the URL of a store", hint=f"Leave {option} out.")
    if "download" in given or "ray" in given:
        gc.enable()  # bytes move before any task begins
    try:
        if "dry_run" in given:
            show_would_write(would_reshard(repo, out, DryRunOptions.of(only(given, DryRunOptions))), as_json)
        elif "ray" in given:
            _refuse_beside_ray(given)
            _reshard_on_cluster(repo, out, how, as_json, only(given, ClusterOptions))
        elif stored:
            _reshard_to_store(repo, out, how, as_json, only(given, StoreOptions))
        else:
            _reshard(repo, out, how, as_json, only(given, ReshardOptions))
    except NothingToDo as error:
        folder = Path(given.get("scratch", ""), "result") if stored else Path(out)
        show_nothing_done(error, folder, as_json, "dry_run" in given)


def _reshard(repo: str, out: str, how: str, as_json: bool, given: dict[str, Any]) -> None:
    """Run `reshard` into a folder."""
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.screens.reshard import show_outcome

    with progress_as(how, log_console(), as_json=as_json) as progress:
        outcome = dsv4_shard.reshard(repo, out, progress=progress, **given)
    show(outcome, as_json, show_outcome, progress.seconds)


def _reshard_to_store(repo: str, out: str, how: str, as_json: bool, given: dict[str, Any]) -> None:
    """Run `reshard` into an object store."""
    from dsv4_shard.destinations import scratch_result
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.screens.reshard import show_outcome, show_upload

    def show_written(outcome: "Outcome") -> None:
        if not as_json:
            show_outcome(output_console(), outcome, progress.seconds)

    with progress_as(how, log_console(), as_json=as_json, on_written=show_written) as progress:
        uploaded = dsv4_shard.reshard_to_store(repo, out, progress=progress, **given)
    kept = scratch_result(Path(given.get("scratch", "")), uploaded.out) if "keep_scratch" in given else None
    show(uploaded, as_json, show_upload, progress.seconds, kept)


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
    from dsv4_shard.terminal.screens.reshard import show_cluster

    # Ray prints to sys.stderr, which is redirected meanwhile: this console keeps the stream itself.
    log = Console(file=sys.stderr, highlight=False, emoji=False)
    started = time.monotonic()
    with progress_as(how, log, as_json=as_json) as progress:
        outcome = dsv4_shard.reshard_on_cluster(repo, out, progress=progress, **given)
    show(outcome, as_json, show_cluster, time.monotonic() - started)
    if not outcome.verification.ok:
        raise typer.Exit(ExitCode.NO)
