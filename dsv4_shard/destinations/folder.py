"""Write a job into a folder, a store or a cluster; dry run.

Each function is one step of a verb and reports its progress to a `Reporter`.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv4_shard.catalog.rank_ranges import say_ranks, share_of
from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.destinations.documents import DryRun, DryShare, Uploaded
from dsv4_shard.destinations.finished import finished_in_folder, refuse_modified, say_finished
from dsv4_shard.errors import NothingToDo, OutputNotEmpty, ShardError
from dsv4_shard.sharding.claims import claimed
from dsv4_shard.sharding.job import Job
from dsv4_shard.sharding.joining import are_there
from dsv4_shard.sharding.manifest import load_manifest, made_differences
from dsv4_shard.sharding.outcome import Outcome, Written
from dsv4_shard.sharding.progress import Reporter, Task
from dsv4_shard.sharding.reading import readings
from dsv4_shard.sharding.run import check_before_fetch, check_destination, reshard, result_to_join
from dsv4_shard.storage import Staging, free_bytes

if TYPE_CHECKING:
    from dsv4_shard.destinations.documents import ClusterOutcome
    from dsv4_shard.destinations.scratch_folder import Scratch
    from dsv4_shard.destinations.share_worker import ShareTask
    from dsv4_shard.sources.object_store import Store
    from dsv4_shard.sources.remote import Listed


@dataclass(frozen=True, slots=True)
class WouldWrite:
    """A job that is not run: it needs `nbytes` in `out`, a folder or a URL, where `free` bytes are free.

    Links to the checkpoint's own files need no space. The bytes that an unfinished run left count as free.
    """

    job: Job
    out: str
    nbytes: int
    free: int
    source_nbytes: int

    def document(self) -> DryRun:
        """The result of a dry run."""
        recipe = self.job.recipe
        shares = _shares_of(self.job)
        own, *each = readings(recipe, [self.job.ranks, *shares])
        files = {file.name: file.nbytes for file in recipe.files}
        return DryRun(
            files=files,
            bytes=self.nbytes,
            free=self.free,
            bytes_read=own.read,
            source_bytes=self.source_nbytes,
            shares=tuple(
                DryShare(ranks=ranks, bytes_read=one.read, bytes_used=one.used, bytes=one.written)
                for ranks, one in zip(shares, each, strict=True)
            ),
            left_out=dict(recipe.left_out),
            left_behind=dict(self.job.left_behind),
            notes=self.job.notes,
        )


def _shares_of(job: Job) -> list[tuple[int, ...]]:
    """The ranks of each node; nothing for a share, and where there is one node."""
    nodes = 1 if job.is_share else min(job.nodes, job.world)
    return [share_of(job.world, number, nodes) for number in range(nodes)] if nodes > 1 else []


Fetch = Callable[[Checkpoint], Checkpoint]
"""Brings a checkpoint's files to this machine, and returns it with them."""


@dataclass(frozen=True, slots=True)
class OutputTarget:
    """A place in an object store, the scratch folder, and the options that concern them."""

    url: str
    scratch: Path
    keep_scratch: bool
    overwrite: bool
    restart: bool


def into_folder(
    job: Job,
    checkpoint: Checkpoint,
    out: Path,
    work: str,
    reporter: Reporter,
    fetch: Fetch | None = None,
    **options: Any,
) -> Outcome:
    """Write a job's files into a folder, unless a finished result there has them all.

    Options and errors are those of `sharding.run.reshard`. Claims the job's ranks first. `fetch` is called if there is
    something to write and `out` can be used, and returns the checkpoint to read. Raises OutputBusy if another run
    writes one of the ranks, and the errors of `finished_in_folder`.
    """
    if not options.get("overwrite") and (there := finished_in_folder(job, checkpoint, out)) is not None:
        return Outcome.nothing(str(out), there.ranks, job.world)
    nbytes = sum(file.payload for file in job.recipe.files)
    with claimed(out, job.ranks, is_share=job.is_share), _naming_leftovers(job, out):
        if fetch is not None:
            check_before_fetch(job, checkpoint, out, bool(options.get("overwrite")), bool(options.get("restart")))
            checkpoint = fetch(checkpoint)
        with reporter.task(Task(work), nbytes) as task:
            outcome = reshard(job, checkpoint, out, on_progress=task.advance, on_resume=task.resume, **options)
    return outcome.model_copy(update={"wrote": job.ranks})


def left_to_write(job: Job, checkpoint: Checkpoint, out: Path) -> Job:
    """The job for those of its ranks that the result in `out` lacks.

    Raises NothingToDo if it has all of them, and OutputNotEmpty if the checkpoint was modified after they were written.
    If nothing can join what is in `out`, the job is returned as it is: the run says why.
    """
    try:
        there = load_manifest(out)
    except ShardError:
        return job
    if any(made_differences(there.made, job.like(there, out).made)):
        return job
    left = tuple(rank for rank in job.ranks if rank not in there.ranks)
    if not left:
        refuse_modified(checkpoint, out)
        raise nothing_to_do(f"{out}: {are_there(job.ranks)}; nothing to do", out, job.world)
    return job if left == job.ranks or job.of_ranks is None else job.of_ranks(left)


def nothing_to_do(message: str, out: Path, world: int) -> NothingToDo:
    """The error for a process of a launcher that has nothing to write into `out`."""
    error = NothingToDo(message)
    error.world = world
    with contextlib.suppress(ShardError):
        error.there = load_manifest(out).ranks
    return error


def nothing_done(out: Path, error: NothingToDo, is_dry: bool) -> Outcome | DryRun:
    """The result of a run, or of a dry one, for which there was nothing to do."""
    if is_dry:
        return DryRun(files={}, bytes=0, free=free_bytes(out), bytes_read=0, source_bytes=0, shares=(), left_out={},
                      left_behind={}, notes=())  # fmt: skip
    return Outcome.nothing(str(out), error.there, error.world)


@contextmanager
def _naming_leftovers(job: Job, out: Path) -> Iterator[None]:
    """Name the unfinished work of these ranks in the error for an output that they cannot join."""
    try:
        yield
    except OutputNotEmpty as error:
        staging = Staging(out, job.share).path
        if staging.exists():
            error.add_note(
                f"{staging} holds an unfinished run of {say_ranks(job.ranks)}: remove it if you do not need it."
            )
        raise


def into_store(
    job: Job,
    checkpoint: Checkpoint,
    place: OutputTarget,
    reporter: Reporter,
    fetch: Fetch | None = None,
    **options: Any,
) -> Uploaded:
    """Write a job's files into a scratch folder, unless they are there, and upload them.

    `fetch` is as in `into_folder`. Raises the errors of `sharding.run.reshard`, `scratch_folder.Scratch` and
    `object_store.upload`.
    """
    from dsv4_shard.destinations.object_store import check_place, finished_upload, nbytes_of, remains_of, upload

    store, scratch = _scratch(job, checkpoint, place)
    there = _unclaimed(store, scratch)
    if (
        there is not None
        and not place.overwrite
        and (done := finished_upload(job, checkpoint, store, there)) is not None
    ):
        return done
    remains: Collection[str] = ()
    if there is not None:
        remains = remains_of(job, store, there)
        check_place(store, there, place.overwrite, remains)
    written: Written | None = None
    with scratch:
        if not scratch.is_written:
            outcome = into_folder(
                job, checkpoint, scratch.result, "reshard", reporter, fetch, restart=place.restart, **options
            )
            reporter.written(outcome)
            written = outcome.written if outcome.files or outcome.linked else None
        with reporter.task(Task("upload"), nbytes_of(scratch.manifest)) as task:
            uploaded = upload(
                store,
                scratch,
                overwrite=place.overwrite,
                remains=remains,
                on_progress=task.advance,
                on_resume=task.resume,
            )
        scratch.is_done = not place.keep_scratch
    return uploaded.model_copy(update={"written": written})


def _unclaimed(store: "Store", scratch: "Scratch") -> "Mapping[str, Listed] | None":
    """The listing of a store; None if the scratch folder's journal says that an upload of it is under way."""
    return store.everything() if scratch.journal.claimed is None else None


def would_store(job: Job, checkpoint: Checkpoint, place: OutputTarget) -> WouldWrite:
    """The space that `into_store` needs. Raises the errors that `into_store` raises before it writes."""
    from dsv4_shard.destinations.object_store import check_place, finished_upload, remains_of

    store, scratch = _scratch(job, checkpoint, place)
    there = _unclaimed(store, scratch)
    if (
        there is not None
        and not place.overwrite
        and (done := finished_upload(job, checkpoint, store, there)) is not None
    ):
        raise NothingToDo(say_finished(done.out, done.ranks, done.world))
    if there is not None:
        check_place(store, there, place.overwrite, remains_of(job, store, there))
    return _would(job, checkpoint, scratch.result if scratch.path.is_dir() else scratch.path, store.url)


def would_write(job: Job, checkpoint: Checkpoint, out: Path, overwrite: bool) -> WouldWrite:
    """The space that `into_folder` needs. Raises the errors that `into_folder` raises before it writes."""
    if not overwrite and (there := finished_in_folder(job, checkpoint, out)) is not None:
        raise nothing_to_do(say_finished(str(out), there.ranks, job.world), out, job.world)
    check_destination(job, checkpoint, out, overwrite)
    result_to_join(job, out, overwrite)
    return _would(job, checkpoint, out, str(out))


def onto_cluster(
    address: str, order: "ShareTask", world: int, nodes: int | None, reporter: Reporter
) -> "ClusterOutcome":
    """Write all ranks, in shares, on the nodes of a Ray cluster; see `ray_cluster.reshard_on_cluster`.

    Relative paths of the order are made absolute, because nodes have working directories of their own.
    """
    from dsv4_shard.destinations.ray_cluster import reshard_on_cluster

    folder = os.path.expanduser(order.repo)
    repo = os.path.abspath(folder) if os.path.isdir(folder) else order.repo
    config = Path(os.path.abspath(order.config)) if order.config is not None else None
    order = replace(order, repo=repo, config=config, out=Path(os.path.abspath(order.out)))
    return reshard_on_cluster(address, order, world, nodes, reporter)


def _scratch(job: Job, checkpoint: Checkpoint, place: OutputTarget) -> "tuple[Store, Scratch]":
    from dsv4_shard.destinations.scratch_folder import Scratch, run_digest, run_digest_before
    from dsv4_shard.sources.object_store import connect

    store = connect(place.url)
    before = partial(run_digest_before, job, checkpoint)
    return store, Scratch(place.scratch, store.url, run_digest(job, checkpoint), before, restart=place.restart)


def _would(job: Job, checkpoint: Checkpoint, folder: Path, out: str) -> WouldWrite:
    # The work of an unfinished run is resumed or deleted: in both cases its bytes count as free.
    needed = job.nbytes_to_write(checkpoint.source, folder)
    free = free_bytes(folder) + Staging(folder, job.share).nbytes_on_disk()
    return WouldWrite(job, out, needed, free, sum(tensor.nbytes for tensor in checkpoint.tensors.values()))
