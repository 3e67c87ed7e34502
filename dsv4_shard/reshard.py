"""The verbs that write: `reshard` and `merge`, in all their forms.

Each verb has one return type. `reshard` writes into a folder, `reshard_to_store` into an object store, and
`reshard_on_cluster` on the nodes of a Ray cluster; `reshard_dry_run` and `merge_dry_run` write nothing. A verb imports
its dependencies when it is called: see `plan`.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dsv4_shard.catalog.request import LayoutOptions
from dsv4_shard.catalog.verb import Later, verb
from dsv4_shard.errors import NotACheckpoint, RanksThere, UsageError
from dsv4_shard.sharding.options import (
    ClusterOptions,
    DryRunOptions,
    MergeDryRunOptions,
    MergeOptions,
    PlanOrLayout,
    ReshardOptions,
    StoreOptions,
)
from dsv4_shard.text.suggest import as_option

if TYPE_CHECKING:
    from dsv4_shard.checkpoint import Checkpoint, Inventory
    from dsv4_shard.destinations import OutputTarget, WouldWrite, documents
    from dsv4_shard.planning import document
    from dsv4_shard.reassembly import merge_job
    from dsv4_shard.sharding import outcome as outcomes
    from dsv4_shard.sharding import progress as progressing
    from dsv4_shard.sharding.job import Job
else:
    document = Later("dsv4_shard.planning.document")
    documents = Later("dsv4_shard.destinations.documents")
    merge_job = Later("dsv4_shard.reassembly.merge_job")
    outcomes = Later("dsv4_shard.sharding.outcome")
    progressing = Later("dsv4_shard.sharding.progress")

AUTO = "auto"
"""Value of `ranks`: the share that the launcher assigns to this process."""


# --- reshard --------------------------------------------------------------------------------------------------------


@verb(ReshardOptions)
def reshard(repo: str | Path, out: str | Path, options: ReshardOptions) -> "outcomes.Outcome":
    """Write one file per rank, and a manifest with their digests. Each source byte is read once.

    `repo` is as in `inspect`. `out` is a folder, which appears only when it is complete on disk. The layout is either a
    `plan`, or `tp` and the other options of `dsv4_shard.plan`. `ranks` selects the ranks to write: numbers, text such
    as "0-7", or "auto" for what `out` lacks of the share that torchrun, mpirun or srun assigns to this process
    (default: all). The same call resumes a run that ended early, and does nothing once its result is complete: `wrote`
    is then empty. `restart` discards unfinished work, and `overwrite` replaces a result. `config` is the config.json
    for shards of DeepSeek's converter. `jobs` is the number of workers (default: the number of CPUs, at most 32).

    Returns an Outcome: the number of files and bytes, the ranks, and the folder.

    Raises:
        - UsageError: options contradict each other.
        - InfeasiblePlan, BadPlan: the layout breaks a rule, or the plan file is not a plan or was edited.
        - OutputError or a subclass: `out` cannot be used.
        - NothingToDo: "auto" leaves no ranks to this process.
        - InexactCast: FP8 would round values, and `allow_inexact` is not given.
        - ReadFailed, WriteFailed, SourceChanged, or an Unreachable: reading or writing failed.

    >>> outcome = dsv4_shard.reshard("model", "shards", plan="plan.json")
    >>> outcome.files, len(outcome.ranks)
    (34, 16)
    """
    from dsv4_shard.destinations import into_folder, nothing_to_do
    from dsv4_shard.opening import is_url
    from dsv4_shard.sharding.progress import Reporter

    if is_url(str(out)):
        raise UsageError(f"{out}: not a folder", hint="`dsv4_shard.reshard_to_store` writes into an object store.")
    made = _prepare(repo, options, Path(out))
    try:
        return into_folder(made.job, made.checkpoint, Path(out), "reshard", Reporter(options.progress),
                           _fetch(made.job, options.download), workers=options.jobs, overwrite=options.overwrite,
                           allow_inexact=options.allow_inexact, restart=options.restart)  # fmt: skip
    except RanksThere as error:
        if options.ranks != AUTO:
            raise
        raise nothing_to_do(f"{error}: nothing to do", Path(out), made.job.world) from error


@verb(StoreOptions)
def reshard_to_store(repo: str | Path, out: str, options: StoreOptions) -> "documents.Uploaded":
    """Write as `reshard` does, and upload the result to an object store; the manifest is uploaded last.

    `out` is a URL such as "s3://bucket/prefix". The files are first written to a folder in `scratch` (default: the
    current folder), which is removed after the upload unless `keep_scratch`. `ranks` cannot be "auto", since a store
    has room for one manifest. The other parameters are as in `reshard`.

    Returns an Uploaded: the URL, and the number of objects and bytes there.

    Raises:
        - The errors of `reshard`.
        - UsageError: `ranks` is "auto", or `out` is not a URL of a supported store.
    """
    from dsv4_shard.destinations import into_store
    from dsv4_shard.opening import is_url
    from dsv4_shard.sharding.progress import Reporter

    if not is_url(out):
        raise UsageError(f"{out}: not the URL of an object store", hint="`dsv4_shard.reshard` writes into a folder.")
    _refuse_auto(options.ranks)
    made = _prepare(repo, options)
    return into_store(made.job, made.checkpoint, _target(out, options, options.keep_scratch),
                      Reporter(options.progress), _fetch(made.job, options.download), workers=options.jobs,
                      allow_inexact=options.allow_inexact)  # fmt: skip


@verb(DryRunOptions)
def reshard_dry_run(repo: str | Path, out: str | Path, options: DryRunOptions) -> "documents.DryRun":
    """Return what `reshard` or, if `out` is a URL, `reshard_to_store` would write. Reads headers, writes nothing.

    The parameters are as in these verbs.

    Returns a DryRun: `files` with their sizes, and whether they fit.

    Raises:
        - The errors that these verbs raise before they write.

    >>> found = dsv4_shard.reshard_dry_run("model", "others", plan="plan.json")
    >>> len(found.files), found.fits
    (34, True)
    """
    return would_reshard(repo, out, options).document()


@verb(ClusterOptions)
def reshard_on_cluster(repo: str | Path, out: str | Path, options: ClusterOptions) -> "documents.ClusterOutcome":
    """Write all ranks on the nodes of a Ray cluster, a share on each node, and verify the whole result.

    `ray` is the address of the cluster. `out` is a folder that all nodes share, or a folder on each node's own disk.
    `jobs` is the number of workers on each node. `progress` gets a task for each share. The other parameters are as in
    `reshard`.

    Returns a ClusterOutcome: the shares, their nodes, and the verification of the result.

    Raises:
        - UsageError: Ray is not installed, or options contradict each other.
        - Unreachable: the cluster does not answer.
        - NodesLost: shares were lost with their nodes too often.
        - The errors of `reshard` in a share.
    """
    from dsv4_shard.destinations import ShareTask, onto_cluster
    from dsv4_shard.opening import at_commit, open_checkpoint, refuse_url
    from dsv4_shard.sharding.job import world_of
    from dsv4_shard.sharding.progress import Reporter

    refuse_url(Path(out), "Nodes write into folders: one that all of them see, or one on the disk of each.")
    config = path_or_none(options.config)
    checkpoint, inventory, made = _planned(repo, config, options)
    share = ShareTask(at_commit(str(repo), checkpoint), config, made.to_json(), Path(out), open_checkpoint,
                      workers=options.jobs, allow_inexact=options.allow_inexact, restart=options.restart)  # fmt: skip
    hosts = made.deployment.nodes
    return onto_cluster(
        options.ray, share, world_of(made, inventory), hosts if hosts > 1 else None, Reporter(options.progress)
    )


@verb(MergeOptions)
def merge(ranks: str | Path, out: str | Path, options: MergeOptions) -> "merge_job.Merged":
    """Merge the shards of all ranks into one checkpoint, with its original names, files and bytes.

    `ranks` is a folder written by reshard or by DeepSeek's converter; `config` is the config.json if the folder has
    none. The other parameters are as in `reshard`.

    Returns a Merged: `changes` and `notes` list the tensors that the shards hold in another form and that keep this
    form.

    Raises:
        - UsageError: `ranks` is already a checkpoint.
        - BadRanks or a subclass: shards are missing, damaged or contradict each other.
        - OutputError or a subclass: `out` cannot be used.
        - ReadFailed, WriteFailed: reading or writing failed.

    >>> merged = dsv4_shard.merge("shards", "again")
    >>> merged.files, [change.held for change in merged.changes]  # of wo_a and of its scale, which is gone
    (7, ['BF16', ''])
    """
    from dsv4_shard.destinations import into_folder
    from dsv4_shard.reassembly.merge_job import Merged, source_of_ranks
    from dsv4_shard.sharding.progress import Reporter

    checkpoint, job = _prepare_merge(ranks, out, options.config)
    outcome = into_folder(job, checkpoint, Path(out), "merge", Reporter(options.progress), workers=options.jobs,
                          overwrite=options.overwrite, restart=options.restart)  # fmt: skip
    return Merged.of(outcome, source_of_ranks(checkpoint))


@verb(MergeDryRunOptions)
def merge_dry_run(ranks: str | Path, out: str | Path, options: MergeDryRunOptions) -> "documents.DryRun":
    """Return what `merge` would write, as a DryRun. Reads headers, writes nothing.

    Raises:
        - The errors that `merge` raises before it writes.

    >>> dsv4_shard.merge_dry_run("shards", "others").fits
    True
    """
    return would_merge(ranks, out, options).document()


# --- dry runs with their job -----------------------------------------------------------------------------------------


def would_reshard(repo: str | Path, out: str | Path, options: DryRunOptions) -> "WouldWrite":
    """The job of `reshard_dry_run`; the command shows more of it than the verb returns."""
    from dsv4_shard.destinations import would_store, would_write
    from dsv4_shard.opening import is_url

    if not is_url(str(out)):
        made = _prepare(repo, options, Path(out))
        return would_write(made.job, made.checkpoint, Path(out), options.overwrite)
    _refuse_auto(options.ranks)
    made = _prepare(repo, options)
    return would_store(made.job, made.checkpoint, _target(str(out), options, False))


def would_merge(ranks: str | Path, out: str | Path, options: MergeDryRunOptions) -> "WouldWrite":
    """The job of `merge_dry_run`; the command shows more of it than the verb returns."""
    from dsv4_shard.destinations import would_write

    checkpoint, job = _prepare_merge(ranks, out, options.config)
    return would_write(job, checkpoint, Path(out), options.overwrite)


# --- steps that the verbs share --------------------------------------------------------------------------------------


class _Prepared(NamedTuple):
    """A job, and the checkpoint that its files are made from."""

    job: "Job"
    checkpoint: "Checkpoint"


def _prepare(
    repo: str | Path,
    options: ReshardOptions | StoreOptions | DryRunOptions,
    out: Path | None = None,
) -> _Prepared:
    """Return the job for the requested ranks; no tensor data is read yet.

    `out` is the folder that "auto" looks into. Raises NothingToDo if it leaves no ranks to this process.
    """
    from dsv4_shard.destinations import left_to_write
    from dsv4_shard.sharding.job import prepare
    from dsv4_shard.storage import collector_paused

    checkpoint, inventory, made = _planned(repo, path_or_none(options.config), options)
    wanted = _wanted(options.ranks, options.overwrite, made, inventory, out)
    with collector_paused():
        job = prepare(checkpoint, inventory, made, wanted)
        if options.ranks == AUTO and out is not None:
            job = left_to_write(job, checkpoint, out)
        return _Prepared(job, checkpoint)


def _planned(
    repo: str | Path, config: Path | None, options: PlanOrLayout
) -> "tuple[Checkpoint, Inventory, document.Plan]":
    """Return the checkpoint, its inventory, and the plan: the given one, or one made from the options."""
    from dsv4_shard.opening import open_checkpoint, pinned
    from dsv4_shard.planning import check_plan, make_plan, plan_of, request_of

    given = options.given_of(LayoutOptions) if options.tp is None else ["tp"]
    if options.plan is not None and given:
        raise UsageError(f"{{plan}} and {{{given[0]}}}: the plan says it already",
                         hint=f"Leave out {as_option(given[0])}, or --plan.",
                         parameters={"plan": ..., given[0]: ...})  # fmt: skip
    followed = plan_of(options.plan) if options.plan is not None else None
    checkpoint, inventory = open_checkpoint(pinned(str(repo), followed), config)
    if followed is not None:
        return checkpoint, inventory, check_plan(followed, checkpoint, inventory)
    if options.tp is None:
        raise UsageError("neither {plan} nor {tp}", hint="Give a plan file, or --tp N and the options of `plan`.",
                         parameters={"plan": ..., "tp": ...})  # fmt: skip
    return checkpoint, inventory, make_plan(checkpoint, inventory, request_of(options))


def _wanted(
    ranks: str | Iterable[int] | None,
    overwrite: bool,
    plan: "document.Plan",
    inventory: "Inventory",
    out: Path | None,
) -> tuple[int, ...] | None:
    """Return the requested ranks, None for all.

    Raises:
        NothingToDo: A launcher started more processes than there are ranks.
    """
    from dsv4_shard.catalog.rank_ranges import own_share, parse_ranks, share_of
    from dsv4_shard.destinations import nothing_to_do
    from dsv4_shard.sharding.job import world_of

    if ranks is None:
        return None
    if ranks != AUTO:
        return parse_ranks(ranks) if isinstance(ranks, str) else tuple(sorted(set(ranks)))
    if overwrite:
        raise UsageError("{ranks} auto and {overwrite}: each share would replace those of the others",
                         hint="Remove the folder first.", parameters={"ranks": ..., "overwrite": ...})  # fmt: skip
    number, count = own_share(os.environ)
    world = world_of(plan, inventory)
    wanted = share_of(world, number, count)
    if not wanted:
        message = f"process {number} of {count}: there are {world} ranks, nothing to do"
        raise nothing_to_do(message, out or Path(), world)
    return wanted


def _target(out: str, options: StoreOptions | DryRunOptions, keep_scratch: bool) -> "OutputTarget":
    from dsv4_shard.destinations import OutputTarget

    return OutputTarget(out, Path(options.scratch or ""), keep_scratch, options.overwrite, options.restart)


def _refuse_auto(ranks: str | Iterable[int] | None) -> None:
    """Raise UsageError for "auto": each process of a launcher would upload its own manifest."""
    if ranks == AUTO:
        raise UsageError(
            "{ranks} auto: an object store has room for one manifest, and each process would put its own",
            hint="Name ranks, and a prefix for each process (--ranks 0-7), or let all write into one folder.",
            parameters={"ranks": ...},
        )


def _fetch(job: "Job", download: bool) -> "Callable[[Checkpoint], Checkpoint] | None":
    """Return the function that downloads the files that a job reads into this machine's Hub cache; None without it."""
    from dsv4_shard.opening import with_download
    from dsv4_shard.sharding.copy import files_of

    return (lambda checkpoint: with_download(checkpoint, files_of(job.recipe))) if download else None


_NAME_RANKS = "Name the folder that reshard wrote, or DeepSeek's converter."


def _prepare_merge(ranks: str | Path, out: str | Path, config: str | Path | None) -> "tuple[Checkpoint, Job]":
    from dsv4_shard.opening import is_url, open_checkpoint, refuse_url
    from dsv4_shard.reassembly.merge_job import prepare_merge, source_of_ranks
    from dsv4_shard.sources.hub_names import download_of, hub_id
    from dsv4_shard.storage import collector_paused

    refuse_url(Path(out), "Name a folder, and copy it to the store.")
    if not is_url(str(ranks)) and not Path(ranks).exists():
        named = hub_id(str(ranks))
        on_hub = f" One on the Hub is merged here: {download_of(named)}." if named else ""
        raise UsageError(f"{ranks}: no such folder", hint=f"{_NAME_RANKS}{on_hub}")
    try:
        checkpoint, inventory = open_checkpoint(str(ranks), path_or_none(config))
    except NotACheckpoint as error:
        if error.hint == NotACheckpoint.hint:
            error.hint = _NAME_RANKS
        raise
    source_of_ranks(checkpoint)
    with collector_paused():
        return checkpoint, prepare_merge(checkpoint, inventory)


def path_or_none(path: str | Path | None) -> Path | None:
    return Path(path) if path is not None else None
