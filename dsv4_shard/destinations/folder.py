"""Where a job's files go: into a folder, a store, onto the nodes of a cluster; or nowhere, to see what would.

Each is a step of its own behind `reshard`, and says how far it is by the same callbacks.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.sharding.callbacks import Callbacks
from dsv4_shard.sharding.job import Job, Outcome
from dsv4_shard.sharding.run import reshard, result_to_join
from dsv4_shard.storage.output_folder import check_output, free_bytes
from dsv4_shard.storage.staging import Staging

if TYPE_CHECKING:
    from dsv4_shard.destinations.object_store import Scratch
    from dsv4_shard.destinations.ray_cluster import ClusterOutcome, ShareWatch
    from dsv4_shard.destinations.share_worker import ShareTask
    from dsv4_shard.sources.object_store import Store


@dataclass(frozen=True, slots=True)
class DryRun:
    """What would be written into `out`, a folder or a URL: `needed` bytes, where the file system has `free` ones.

    Links to the checkpoint's own files need none, nor does what an unfinished run left, which is counted as free.
    """

    job: Job
    out: str
    needed: int
    free: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.free

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each weight file, by name."""
        return {file.name: file.nbytes for file in self.job.recipe.files}


@dataclass(frozen=True, slots=True)
class OutputTarget:
    """A place in an object store, and where the files are made first."""

    url: str
    scratch: Path
    keep_scratch: bool
    overwrite: bool
    restart: bool


def into_folder(job: Job, checkpoint: Checkpoint, out: Path, what: str, told: Callbacks, **options: Any) -> Outcome:
    """Write a job's files into a folder. Options and errors are those of `reshard.reshard`."""
    told.begin(what, sum(file.payload for file in job.recipe.files))
    return reshard(job, checkpoint, out, on_progress=told.advance, on_resume=told.resume, **options)


def into_store(
    job: Job,
    checkpoint: Checkpoint,
    place: OutputTarget,
    told: Callbacks,
    on_written: Callable[[Outcome], None],
    **options: Any,
) -> Outcome:
    """Write a job's files into a scratch folder, unless they are there, and put them into a store.

    Raises what `reshard.reshard`, `upload.Scratch` and `upload.upload` raise.
    """
    from dsv4_shard.destinations.object_store import check_place, nbytes_of, upload

    store, scratch = _scratch(job, checkpoint, place)
    with scratch:
        check_place(store, scratch, place.overwrite)
        if scratch.is_written:
            outcome = Outcome(scratch.result, 0, 0, 0, {}, job.ranks, job.world)
        else:
            outcome = into_folder(job, checkpoint, scratch.result, "reshard", told, restart=place.restart, **options)
            on_written(outcome)
        told.begin("upload", nbytes_of(scratch.manifest))
        uploaded = upload(store, scratch, overwrite=place.overwrite, on_progress=told.advance, on_resume=told.resume)
        scratch.is_done = not place.keep_scratch
    return replace(outcome, uploaded=uploaded)


def would_store(job: Job, checkpoint: Checkpoint, place: OutputTarget) -> DryRun:
    """What `into_store` would write. Raises what it raises before it writes."""
    from dsv4_shard.destinations.object_store import check_place

    store, scratch = _scratch(job, checkpoint, place)
    check_place(store, scratch, place.overwrite)
    return _dry_run(job, checkpoint, scratch.result if scratch.path.is_dir() else scratch.path, store.url)


def would_write(job: Job, checkpoint: Checkpoint, out: Path, overwrite: bool) -> DryRun:
    """What `into_folder` would write. Raises what it raises before it writes."""
    check_output(out, checkpoint.source.root, overwrite, job.is_share)
    result_to_join(job, out, overwrite)
    return _dry_run(job, checkpoint, out, str(out))


def onto_cluster(
    address: str, order: "ShareTask", world: int, nodes: int | None, watch: "ShareWatch | None"
) -> "ClusterOutcome":
    """Write all ranks in shares on the nodes of a Ray cluster; see `cluster.reshard_on_cluster`.

    Nodes have working directories of their own: what the order names in this one's is named in full.
    """
    from dsv4_shard.destinations.ray_cluster import Unwatched, reshard_on_cluster

    folder = os.path.expanduser(order.repo)
    repo = os.path.abspath(folder) if os.path.isdir(folder) else order.repo
    config = Path(os.path.abspath(order.config)) if order.config is not None else None
    order = replace(order, repo=repo, config=config, out=Path(os.path.abspath(order.out)))
    return reshard_on_cluster(address, order, world, nodes, watch or Unwatched())


def _scratch(job: Job, checkpoint: Checkpoint, place: OutputTarget) -> "tuple[Store, Scratch]":
    from dsv4_shard.destinations.object_store import Scratch, run_digest, run_digest_of_schema_1
    from dsv4_shard.sources.object_store import connect

    store = connect(place.url)
    before = partial(run_digest_of_schema_1, job, checkpoint)
    return store, Scratch(place.scratch, store.url, run_digest(job, checkpoint), before, restart=place.restart)


def _dry_run(job: Job, checkpoint: Checkpoint, folder: Path, out: str) -> DryRun:
    # What an unfinished run left there is gone on with, or makes room.
    needed = job.nbytes_to_write(checkpoint.source, folder)
    return DryRun(job, out, needed, free_bytes(folder) + Staging(folder, job.share).nbytes_on_disk())
