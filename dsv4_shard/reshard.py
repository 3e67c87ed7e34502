"""The verbs that move bytes, as functions: `reshard`, `merge`, `verify`. All that is said in `api` holds of them too.

How far they are is told by callbacks: `on_begin` gets what begins ("reshard", "upload", "merge" or "verify") and its
bytes, `on_progress` the bytes that were moved since, from any thread, and `on_resume` those that are there from an
earlier run. What a callback raises ends the run, which the same call then goes on with.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from dsv4_shard.errors import NothingToDo, RanksThere, UsageError
from dsv4_shard.sharding.callbacks import MovingOptions, check_jobs, ignore, path_or_none
from dsv4_shard.text.suggest import as_option

if TYPE_CHECKING:
    from dsv4_shard.checkpoint.inventory import Inventory
    from dsv4_shard.checkpoint.reader import Checkpoint
    from dsv4_shard.destinations.folder import DryRun
    from dsv4_shard.destinations.ray_cluster import ClusterOutcome, ShareWatch
    from dsv4_shard.planning.document import Plan
    from dsv4_shard.reassembly.merge_job import Merged
    from dsv4_shard.sharding.job import Outcome

AUTO = "auto"
"""For `ranks`: those that the process's launcher leaves to it."""


class MergeOptions(MovingOptions, total=False):
    config: str | Path | None
    overwrite: bool
    restart: bool
    on_resume: Callable[[int], None]


class ReshardOptions(MergeOptions, total=False):
    plan: "str | Path | Plan | None"
    tp: int | None
    ep: int | None
    dp: int | None
    engine: str | None
    runner: str | None
    a2a: str | None
    shared_experts: str | None
    gpu: str | None
    gpu_memory: str | None
    nodes: int | None
    expert_dtype: str | None
    engine_version: str | None
    ranks: str | Iterable[int] | None
    allow_inexact: bool
    download: bool
    scratch: str | Path | None
    keep_scratch: bool
    on_written: "Callable[[Outcome], None]"
    watch: "ShareWatch | None"


# --- verbs ----------------------------------------------------------------------------------------------------------


@overload
def reshard(
    repo: str | Path, out: str | Path, *, dry_run: Literal[False] = ..., **options: Unpack[ReshardOptions]
) -> "Outcome": ...


@overload
def reshard(
    repo: str | Path, out: str | Path, *, dry_run: Literal[True], ray: str | None = ...,
    **options: Unpack[ReshardOptions],
) -> "DryRun": ...  # fmt: skip


@overload
def reshard(
    repo: str | Path, out: str | Path, *, dry_run: Literal[False] = ..., ray: str, **options: Unpack[ReshardOptions]
) -> "ClusterOutcome": ...


@overload
def reshard(
    repo: str | Path, out: str | Path, *, dry_run: bool, ray: str | None = ..., **options: Unpack[ReshardOptions]
) -> "Outcome | DryRun | ClusterOutcome": ...


def reshard(
    repo: str | Path,
    out: str | Path,
    *,
    plan: "str | Path | Plan | None" = None,
    tp: int | None = None,
    ep: int | None = None,
    dp: int | None = None,
    engine: str | None = None,
    runner: str | None = None,
    a2a: str | None = None,
    shared_experts: str | None = None,
    gpu: str | None = None,
    gpu_memory: str | None = None,
    nodes: int | None = None,
    expert_dtype: str | None = None,
    engine_version: str | None = None,
    ranks: str | Iterable[int] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    allow_inexact: bool = False,
    download: bool = False,
    scratch: str | Path | None = None,
    keep_scratch: bool = False,
    config: str | Path | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    on_begin: Callable[[str, int], None] = ignore,
    on_progress: Callable[[int], None] = ignore,
    on_resume: Callable[[int], None] = ignore,
    on_written: "Callable[[Outcome], None]" = ignore,
    watch: "ShareWatch | None" = None,
) -> "Outcome | DryRun | ClusterOutcome":
    """Write one file a rank, each source byte read once, and a manifest that proves what was written.

    `out` is a folder, which appears when all of it is on disk, or the URL of an object store: then the result is made
    in the folder `scratch` (default: here) and put. What is written is said by a `plan`, or by `tp` and the options of
    `plan` (None: its defaults), not by both. `ranks` are those to write: numbers, text like "0-7", or "auto" for the
    share that torchrun or srun leaves to this process; default: all. A run that ended early goes on where it was when
    the same call is made again; `restart` throws its work away.

    `dry_run` returns what would be written, and writes nothing. `ray` is the address of a Ray cluster (or "auto"), on
    whose nodes the shares are written and then verified; `watch` is told how far each of them is. `config` is the
    config.json of shards of DeepSeek's converter, `jobs` the number of threads (default: the CPUs, at most 8).

    `on_begin` gets "reshard", then "upload" for a store, each with its bytes; `on_progress` gets bytes moved, from any
    thread; `on_resume` the bytes that are there from an earlier run; `on_written` the outcome, before an upload.

    Raises UsageError for options that mean nothing together, InfeasiblePlan, BadPlan, an OutputError for an `out` that
    cannot be used, NothingToDo where "auto" leaves nothing, InexactCast where FP8 would round (`allow_inexact`), and
    ReadFailed, WriteFailed, SourceChanged or an Unreachable on the way.

    >>> outcome = dsv4_shard.reshard("model", "shards", plan="plan.json")
    >>> outcome.files, len(outcome.ranks)
    (34, 16)
    """
    from dsv4_shard.destinations.folder import (
        OutputTarget,
        into_folder,
        into_store,
        onto_cluster,
        would_store,
        would_write,
    )
    from dsv4_shard.destinations.share_worker import ShareTask
    from dsv4_shard.opening import at_commit, is_url, open_checkpoint, pinned, with_download
    from dsv4_shard.planning.plan_file import plan_of
    from dsv4_shard.sharding.callbacks import Callbacks
    from dsv4_shard.sharding.copy import files_of
    from dsv4_shard.sharding.job import prepare, world_of
    from dsv4_shard.storage.runtime import collector_paused

    options = {
        "tp": tp, "ep": ep, "dp": dp, "engine": engine, "runner": runner, "a2a": a2a, "shared_experts": shared_experts,
        "gpu": gpu, "nodes": nodes, "expert_dtype": expert_dtype, "engine_version": engine_version,
        "gpu_memory": gpu_memory,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    check_jobs(jobs)
    stored, config = is_url(str(out)), path_or_none(config)
    if not stored and (scratch is not None or keep_scratch):
        raise UsageError(f"--scratch, --keep-scratch: {out} is a folder, and made in its own place")
    if stored and ranks == AUTO:
        raise UsageError(
            f"--ranks auto: {out} has room for one manifest, and each process would put its own",
            hint="Name ranks, and a prefix for each process (--ranks 0-7), or let all write into one folder.",
        )
    if ray is not None and not dry_run:
        _refuse_beside_ray(out, ranks, overwrite, download)
    if plan is not None and given:
        option = as_option(next(iter(given)))
        raise UsageError(f"--plan and {option}: the plan says it already", hint=f"Leave out {option}, or --plan.")
    followed = plan_of(plan) if plan is not None else None
    checkpoint, inventory = open_checkpoint(pinned(str(repo), followed), config)
    made = _plan_for(checkpoint, inventory, followed, given)
    if ray is not None and not dry_run:
        order = ShareTask(at_commit(str(repo), checkpoint), config, made.to_json(), Path(out), open_checkpoint, (),
        jobs,
                      allow_inexact, restart)  # fmt: skip
        hosts = made.deployment["nodes"]
        return onto_cluster(ray, order, world_of(made, inventory), hosts if hosts > 1 else None, watch)
    wanted = _wanted(ranks, overwrite, made, inventory)
    with collector_paused():
        job = prepare(checkpoint, inventory, made, wanted)
    place = OutputTarget(str(out), Path(scratch or ""), keep_scratch, overwrite, restart)
    if dry_run:
        return would_store(job, checkpoint, place) if stored else would_write(job, checkpoint, Path(out), overwrite)
    if download:
        checkpoint = with_download(checkpoint, files_of(job.recipe))
    told = Callbacks(on_begin, on_progress, on_resume)
    if stored:
        return into_store(job, checkpoint, place, told, on_written, workers=jobs, allow_inexact=allow_inexact)
    try:
        return into_folder(job, checkpoint, Path(out), "reshard", told, workers=jobs, overwrite=overwrite,
                           allow_inexact=allow_inexact, restart=restart)  # fmt: skip
    except RanksThere as error:
        if ranks != AUTO:
            raise
        raise NothingToDo(f"{error}: nothing to do") from error


@overload
def merge(
    ranks: str | Path, out: str | Path, *, dry_run: Literal[False] = ..., **options: Unpack[MergeOptions]
) -> "Merged": ...


@overload
def merge(
    ranks: str | Path, out: str | Path, *, dry_run: Literal[True], **options: Unpack[MergeOptions]
) -> "DryRun": ...


@overload
def merge(
    ranks: str | Path, out: str | Path, *, dry_run: bool, **options: Unpack[MergeOptions]
) -> "Merged | DryRun": ...


def merge(
    ranks: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    jobs: int | None = None,
    on_begin: Callable[[str, int], None] = ignore,
    on_progress: Callable[[int], None] = ignore,
    on_resume: Callable[[int], None] = ignore,
) -> "Merged | DryRun":
    """Put the shards of all ranks together again: one checkpoint, in its own names, files and bytes.

    `ranks` is a folder of reshard's, or of DeepSeek's converter, with its `config` if that has none. What the shards
    have not kept is as they hold it: `changes` and `notes` say so. Options and callbacks are as in `reshard`.

    Raises UsageError where `ranks` is a checkpoint already, a BadRanks where shards are missing, damaged or contradict
    each other, and an OutputError, ReadFailed or WriteFailed.

    >>> merged = dsv4_shard.merge("shards", "again")
    >>> merged.outcome.files, [change.held for change in merged.changes]  # of wo_a and of its scale, which is gone
    (7, ['BF16', ''])
    """
    from dsv4_shard.destinations.folder import into_folder, would_write
    from dsv4_shard.opening import open_checkpoint, refuse_url
    from dsv4_shard.reassembly.merge_job import Merged, prepare_merge, source_of_ranks
    from dsv4_shard.sharding.callbacks import Callbacks
    from dsv4_shard.storage.runtime import collector_paused

    check_jobs(jobs)
    refuse_url(Path(out), "Name a folder, and copy it to the store.")
    checkpoint, inventory = open_checkpoint(str(ranks), path_or_none(config))
    source = source_of_ranks(checkpoint)
    with collector_paused():
        job = prepare_merge(checkpoint, inventory)
    if dry_run:
        return would_write(job, checkpoint, Path(out), overwrite)
    told = Callbacks(on_begin, on_progress, on_resume)
    outcome = into_folder(job, checkpoint, Path(out), "merge", told, workers=jobs, overwrite=overwrite, restart=restart)
    return Merged(outcome, source)


def _plan_for(
    checkpoint: "Checkpoint", inventory: "Inventory", followed: "Plan | None", given: dict[str, Any]
) -> "Plan":
    from dsv4_shard.planning.make_plan import make_plan
    from dsv4_shard.planning.plan_file import check_plan
    from dsv4_shard.planning.request import request_of

    if followed is not None:
        return check_plan(followed, checkpoint, inventory)
    if "tp" not in given:
        raise UsageError("neither --plan nor --tp", hint="Give a plan file, or --tp N and the options of `plan`.")
    return make_plan(checkpoint, inventory, request_of(**given))


def _refuse_beside_ray(out: str | Path, ranks: str | Iterable[int] | None, overwrite: bool, download: bool) -> None:
    from dsv4_shard.opening import refuse_url

    refuse_url(Path(out), "Nodes write into folders: one that all of them see, or one on the disk of each.")
    for option, is_given, why, hint in (
        ("--ranks", ranks is not None, "all ranks are written, a share on each node", "Leave out --ranks, or --ray."),
        ("--overwrite", overwrite, "each share would replace those of the others", "Remove an earlier result first."),
        ("--download", download, "each node fetches what its ranks need", "Leave out --download."),
    ):
        if is_given:
            raise UsageError(f"--ray and {option}: {why}", hint=hint)


def _wanted(
    ranks: str | Iterable[int] | None, overwrite: bool, plan: "Plan", inventory: "Inventory"
) -> tuple[int, ...] | None:
    """The ranks asked for, None for all. Raises NothingToDo if a launcher started more processes than there are."""
    from dsv4_shard.catalog.rank_ranges import own_share, parse_ranks, share_of
    from dsv4_shard.sharding.job import world_of

    if ranks is None:
        return None
    if ranks != AUTO:
        wanted = parse_ranks(ranks) if isinstance(ranks, str) else tuple(sorted(set(ranks)))
        if not wanted:
            raise UsageError("--ranks: none", hint="Name those to write, or leave it out for all.")
        return wanted
    if overwrite:
        raise UsageError("--ranks auto and --overwrite: each share would replace those of the others",
                         hint="Remove the folder first.")  # fmt: skip
    number, count = own_share(os.environ)
    world = world_of(plan, inventory)
    wanted = share_of(world, number, count)
    if not wanted:
        raise NothingToDo(f"process {number} of {count}: there are {world} ranks, nothing to do")
    return wanted
