"""Write a job durably: stage, resume, copy, then join or commit."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.errors import NotAResult, OtherDeployment, OutputNotEmpty, SourceChanged
from dsv4_shard.sharding import journal
from dsv4_shard.sharding.copy import CopyResult, FileSink, Listeners, copy, files_of, pays_processes
from dsv4_shard.sharding.earlier_run import earlier_run, journal_of, original_of, recipe_digest, unfinished
from dsv4_shard.sharding.file_hasher import FileHasher, HashedFile
from dsv4_shard.sharding.job import Job
from dsv4_shard.sharding.joining import (
    joined_digests,
    joined_sha256,
    new_files,
    refuse_other_companions,
    refuse_unjoinable,
)
from dsv4_shard.sharding.journal import RunIdentity
from dsv4_shard.sharding.manifest import (
    SCHEMA_VERSION,
    Manifest,
    ManifestCompanion,
    ManifestFile,
    load_manifest,
    ranks_written_by,
)
from dsv4_shard.sharding.outcome import Outcome
from dsv4_shard.sharding.overwriting import names_to_overwrite
from dsv4_shard.sharding.recipe import OutputFile, Recipe
from dsv4_shard.sharding.statement import is_statement
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.hub_cache import unchecked_copies
from dsv4_shard.storage import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    StagedFile,
    Staging,
    check_output,
    check_room,
    check_writable,
    default_workers,
    digest_of,
)
from dsv4_shard.version import __version__


def reshard(
    job: Job,
    checkpoint: Checkpoint,
    out: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    allow_inexact: bool = False,
    restart: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
    on_resume: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Write a job's files into the folder `out`, which appears whole or not at all.

    A share of the ranks joins the result of other ranks in `out`. The result gets all ranks of the share at once, after
    they are on disk. An unfinished run of the same job is resumed.

    Args:
        job: The files to write.
        checkpoint: The source.
        out: The output folder.
        workers: Number of workers (default: see `default_workers`).
        overwrite: Replace the whole result in `out`.
        allow_inexact: Let an FP8 cast round.
        restart: Discard the work of an unfinished run.
        on_progress: Receives the bytes put since its last call.
        on_resume: Receives the bytes of tensors that an earlier run wrote.

    Raises:
        OutputError: The output cannot be used.
        OtherRun: The folder has the unfinished work of another job.
        RanksThere: The output has all ranks of the share already.
        ReadFailed: The source cannot be read.
        WriteFailed: The output cannot be written.
        SourceChanged: A source file changed.
        InexactCast: An FP8 cast would round.
        WorkerLost: A worker process was killed.
    """
    check_destination(job, checkpoint, out, overwrite)
    recipe, run = job.recipe, _run(job, checkpoint)
    with Staging(out, job.share) as staging:
        check_destination(job, checkpoint, out, overwrite)  # Staging may restore an earlier result
        _undo_join(job, staging, overwrite)
        earlier = earlier_run(staging, run, recipe, checkpoint.source, restart)
        check_room(out, job.nbytes_to_write(checkpoint.source, out) - staging.nbytes_on_disk())
        workers = workers or default_workers()
        files = _stage_all(recipe.files, staging, checkpoint.source, earlier.stop > 0, workers)
        linked = [file for file, staged in zip(recipe.files, files, strict=True) if staged is None]
        resumed = sum(step.nbytes for step in earlier.finished)
        if resumed:
            on_resume(resumed)
        processes = pays_processes(recipe, checkpoint.source, workers)
        with _hasher(recipe, staging, workers) as hasher:
            flush = partial(_flush, files, hasher)
            with journal_of(staging, run, earlier, flush, in_background=processes) as log:
                result = copy(
                    recipe,
                    checkpoint.source,
                    FileSink(files),
                    workers,
                    Listeners(on_progress, hasher.put, hasher.complete, log),
                    allow_inexact=allow_inexact,
                    finished=earlier.finished,
                    in_order={file.source for file in linked},
                    processes=processes,
                )
                log.wait()
                ranks = _complete(job, result, list(hasher.digests().values()), staging, overwrite)
    return _outcome(job, checkpoint, out, result, linked, resumed, ranks)


def _flush(files: Sequence[StagedFile | None], hasher: FileHasher) -> None:
    """Wait until all that was put is on disk; drop from the page cache what is hashed. Raises WriteFailed."""
    for number, staged in enumerate(files):
        if staged is not None:
            staged.flush(keep_from=hasher.hashed(number))


def _outcome(
    job: Job,
    checkpoint: Checkpoint,
    out: Path,
    result: CopyResult,
    linked: Sequence[OutputFile],
    resumed: int,
    ranks: tuple[int, ...],
) -> Outcome:
    """What a run did. `linked` are links to the checkpoint's files, `resumed` the bytes that an earlier run wrote."""
    return Outcome(
        out=str(out),
        files=len(job.recipe.files) - len(linked),
        linked=len(linked),
        bytes=job.nbytes - sum(file.nbytes for file in linked),
        bytes_resumed=resumed,
        bytes_read=result.bytes_read,
        intact=len(checkpoint.source.sha256_verified),
        unchecked=len(unchecked_copies(checkpoint.source, files_of(job.recipe))),
        inexact=result.inexact,
        ranks=ranks,
        world=job.world,
    )


def _hasher(recipe: Recipe, staging: Staging, workers: int) -> FileHasher:
    """The hasher of the recipe's files in the staging folder."""
    files = [HashedFile(staging.folder / file.name, file.header, file.nbytes) for file in recipe.files]
    return FileHasher(dict(enumerate(files)), workers)


def _complete(
    job: Job, result: CopyResult, sha256: Sequence[str], staging: Staging, overwrite: bool
) -> tuple[int, ...]:
    """Add links, small files and the manifest after all tensors are written. Returns the ranks then in the output.

    `sha256` has the SHA-256 of each file of the recipe.
    """
    for file in job.recipe.files:
        staging.link(file.name, file.links)
    for name, content in job.companions.items():
        staging.write_file(name, content)
    with staging.ending():
        there = result_to_join(job, staging.out, overwrite)
        job = job if there is None else job.like(there, staging.out)
        statement = job.statement(_sha256_by_name(job, sha256), __version__).to_bytes()
        staging.write_durably(job.statement_name, statement)
        own = _manifest(job, result.digests, sha256, [_companion(job.statement_name, statement)])
        if there is None:
            staging.commit(own.to_bytes(), names_to_overwrite(staging.out) if overwrite else ())
            return own.ranks
        joined = _joined(there, own, job, staging.out)
        staging.join(joined.to_bytes(), new_files(there, own, joined))
        return joined.ranks


def check_destination(job: Job, checkpoint: Checkpoint, out: Path, overwrite: bool) -> None:
    """Check that a job may write into `out`. Raises OutputError: see `check_output` and `names_to_overwrite`."""
    check_output(out, checkpoint.source.root, overwrite, job.is_share)
    if overwrite:
        names_to_overwrite(out)


def check_before_fetch(job: Job, checkpoint: Checkpoint, out: Path, overwrite: bool, restart: bool) -> None:
    """Raise what `reshard` would raise about the output, before the files that it reads are downloaded.

    Files that may become links to downloaded ones need no space yet.
    """
    check_destination(job, checkpoint, out, overwrite)
    result_to_join(job, out, overwrite)
    check_writable(out)
    staging = Staging(out, job.share)
    if not restart:
        unfinished(staging, _run(job, checkpoint), job.recipe)
    linkable = sum(file.nbytes for file in job.recipe.files if file.source)
    check_room(out, job.nbytes - linkable - staging.nbytes_on_disk())


def result_to_join(job: Job, out: Path, overwrite: bool) -> Manifest | None:
    """The result of other ranks in `out` that a share will join; None if there is none or it will be replaced.

    Raises RanksThere, OtherDeployment or OutputNotEmpty if the share cannot join it.
    """
    if overwrite or not job.is_share or not (out / MANIFEST_NAME).is_file():
        return None
    try:
        there = load_manifest(out)
    except NotAResult as error:
        raise OtherDeployment(f"{error}; nothing can join it") from None
    refuse_unjoinable(str(out), there, job.like(there, out).made, job.ranks)
    if os.path.lexists(out / SIGNATURE_NAME):
        raise OutputNotEmpty(
            f"{out}: signed; more ranks would make {SIGNATURE_NAME} invalid",
            hint=f"Move {SIGNATURE_NAME} away, run again, then sign the complete result.",
        )
    return there


def _undo_join(job: Job, staging: Staging, overwrite: bool) -> None:
    """Move files back that an earlier run of this share had moved into the output when it was killed.

    Raises the errors of `result_to_join`.
    """
    if overwrite or not job.is_share:
        return
    with staging.out_locked():
        there = result_to_join(job, staging.out, overwrite)
        if there is not None:
            files = {file.name for file in job.recipe.files}
            links = {link for file in job.recipe.files for link in file.links}
            small = job.like(there, staging.out).companions.keys() | {job.statement_name}
            names = (files | links | small) - there.names
            if staging.is_sealed:
                staging.take_back(files, sorted(names))
            elif there_already := sorted(name for name in names if os.path.lexists(staging.out / name)):
                raise OutputNotEmpty(
                    f"{staging.out}: holds {there_already[0]}, which dsv4-shard did not write; it would be replaced",
                    hint="Move it away, or choose another folder.",
                )


def _joined(there: Manifest, own: Manifest, job: Job, out: Path) -> Manifest:
    """The manifest of a result and a share together: that of one run of all their ranks, but with their statements."""
    if job.of_ranks is None:
        raise ValueError("a job of all ranks there are joins nothing")
    union = job.of_ranks(tuple(sorted({*there.ranks, *own.ranks}))).like(there, out)
    parts, files = (there, own), union.recipe.files
    statements = [entry for part in parts for entry in part.companions if is_statement(entry.name)]
    digests, sha256 = joined_digests(parts, files), joined_sha256(parts, files)
    joined = _manifest(union, digests, sha256, statements, ranks_written_by(parts))
    refuse_other_companions(str(out), there.companions, joined.companions)
    return joined


def _run(job: Job, checkpoint: Checkpoint) -> RunIdentity:
    """Identity of this run. Raises SourceChanged if a file changed since its header was read."""
    for file in checkpoint.files:
        with checkpoint.source.open(file.name) as opened:
            if (opened.nbytes, opened.mtime_ns) != (file.nbytes, file.mtime_ns):
                raise SourceChanged(f"{file.name}: modified since its header was read")
    return RunIdentity(
        schema_version=journal.SCHEMA_VERSION,
        tool_version=__version__,
        origin=job.origin,
        request=job.request,
        ranks=job.ranks,
        times={file.name: file.mtime_ns for file in checkpoint.files},
        files={file.name: file.nbytes for file in job.recipe.files},
        recipe_digest=recipe_digest(job.recipe),
    )


def _stage_all(
    files: Sequence[OutputFile], staging: Staging, source: Source, is_there: bool, workers: int
) -> list[StagedFile | None]:
    """Create or reopen the output files; see `_stage`. In memory, to reserve bytes takes as long as to copy them."""
    stage = partial(_stage, staging=staging, source=source, is_there=is_there)
    if workers == 1:
        return list(map(stage, files))
    with ThreadPoolExecutor(workers, thread_name_prefix="stage") as pool:
        return list(pool.map(stage, files))


def _stage(file: OutputFile, staging: Staging, source: Source, is_there: bool) -> StagedFile | None:
    """Create an output file with its header, or reopen it.

    Returns None for a link to the checkpoint's own file, which must not be written to.
    """
    original = original_of(file, source)
    if original and (staging.links_to(file.name, original) if is_there else staging.adopt(file.name, original)):
        return None
    staged = staging.reopen(file.name) if is_there else staging.create(file.name, file.nbytes)
    staged.write(0, memoryview(file.header))  # again: before the first mark, it may have been lost
    return staged


def _manifest(
    job: Job,
    digests: Mapping[tuple[int, str], str],
    sha256: Sequence[str | None],
    statements: Iterable[ManifestCompanion],
    written_by: dict[str, tuple[int, ...]] | None = None,
) -> Manifest:
    """The manifest of a job.

    `digests` has the digests of its tensors by (file number, tensor name), `sha256` that of each file. `statements` are
    the entries of the statements of provenance. `written_by` maps each tool version to the ranks that it wrote; by
    default, this version wrote all.
    """
    made = job.made
    companions = [*(_companion(name, content) for name, content in job.companions.items()), *statements]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        written_by={__version__: job.ranks} if written_by is None else written_by,
        digest="",
        layout=made.layout,
        world=made.world,
        ranks=job.ranks,
        source=made.source,
        plan_digest=made.plan_digest,
        identity=made.identity,
        files=_manifest_files(job.recipe.files, digests, sha256),
        companions=tuple(sorted(companions, key=lambda entry: entry.name)),
        left_out=job.recipe.left_out,
    ).sealed()


def _sha256_by_name(job: Job, sha256: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of each file of the recipe and each companion."""
    files = {file.name: whole for file, whole in zip(job.recipe.files, sha256, strict=True)}
    return files | {name: hashlib.sha256(content).hexdigest() for name, content in job.companions.items()}


def _companion(name: str, content: bytes) -> ManifestCompanion:
    sha256 = hashlib.sha256(content).hexdigest()
    return ManifestCompanion(name=name, nbytes=len(content), sha256=sha256, digest=digest_of(content))


def _manifest_files(
    files: tuple[OutputFile, ...], digests: Mapping[tuple[int, str], str], sha256: Sequence[str | None]
) -> tuple[ManifestFile, ...]:
    """The manifest entries of the weight files, with the digests from the copy."""
    tensors: list[dict[str, str]] = [{} for _ in files]
    for (number, name), digest in digests.items():
        tensors[number][name] = digest
    return tuple(
        ManifestFile(
            name=file.name,
            ranks=file.ranks,
            nbytes=file.nbytes,
            payload=file.payload,
            sha256=whole,
            header_digest=digest_of(file.header),
            tensors=found,
            pieces=file.pieces,
            links=file.links,
        )
        for file, found, whole in zip(files, tensors, sha256, strict=True)
    )
