"""Plan → rank files: checks everything first, then lets `copying` move the bytes and `commit` make them real."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import xxhash

from dsv4_shard.catalog.rank_ranges import share_name
from dsv4_shard.checkpoint.fingerprint import Origin
from dsv4_shard.checkpoint.inventory import Inventory, refuse_errors
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.copying import CopyResult, copy, pieces_of
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.layout import Layout
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.errors import NotAResult, OtherDeployment, SourceChanged, UsageError, WriteFailed
from dsv4_shard.joining import joined_digests, new_files, refuse_other_companions, refuse_unjoinable
from dsv4_shard.journal import Finished, Journal, Run, Unfinished, read_journal, refuse_other
from dsv4_shard.manifest import PLAN_NAME, Made, Manifest, ManifestCompanion, ManifestFile, load_manifest
from dsv4_shard.planning.choose import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.make_plan import refuse_infeasible
from dsv4_shard.recipe import OutputFile, Recipe, make_recipe
from dsv4_shard.skeleton import SKELETON_NAME, write_skeleton
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.checkpoint_files import INDEX_FILE
from dsv4_shard.storage.digests import DIGEST_BYTES, digest_of
from dsv4_shard.storage.output_folder import MANIFEST_NAME, check_output, check_room
from dsv4_shard.storage.runtime import default_workers
from dsv4_shard.storage.staged_file import FileSink, StagedFile
from dsv4_shard.storage.staging import Staging
from dsv4_shard.version import __version__

if TYPE_CHECKING:
    from dsv4_shard.upload import Uploaded

COPIED_FILE_LIMIT = 256 << 20
"""A tokenizer larger than this is no tokenizer."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a run will write, known before it writes: the recipe and the small files.

    `layout` names the form of the files, `origin` the checkpoint that they are made from, `request` what was asked for.
    """

    layout: str
    origin: Origin
    request: dict[str, int | str | None]
    recipe: Recipe
    companions: dict[str, bytes]
    ranks: tuple[int, ...]
    world: int
    identity: dict[str, str]
    of_ranks: "Callable[[tuple[int, ...]], Job] | None" = None
    """What other ranks, or more of them, are written by; None where there are no others."""

    @property
    def is_share(self) -> bool:
        """Whether other ranks' files are written by other runs, and are to be one result with these."""
        return len(self.ranks) < self.world

    @property
    def share(self) -> str:
        """The name of the share that this is, empty if it is the whole."""
        return share_name(self.ranks) if self.is_share else ""

    @property
    def made(self) -> Made:
        plan = self.companions.get(PLAN_NAME)
        return Made(self.layout, self.world, self.identity, self.origin, digest_of(plan) if plan is not None else None)

    @property
    def nbytes(self) -> int:
        """Bytes of the output, the manifest apart."""
        return self.recipe.nbytes + sum(map(len, self.companions.values()))

    def nbytes_to_write(self, source: Source, out: Path) -> int:
        """`nbytes` without files that can be links to the checkpoint's own."""
        linked = [file.nbytes for file in self.recipe.files if file.source and source.shares_disk(file.source, out)]
        return self.nbytes - sum(linked)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run wrote; `linked` files are links to the checkpoint's own, and not in `files` and `nbytes`.

    `resumed` bytes of tensors are an earlier run's, which this one went on from. `intact` files of the checkpoint came
    whole over a network, and have the SHA-256 that their repository gives. `ranks` of `world` are in `out` now.
    `uploaded` is what was then put into an object store; no files are written where an earlier run had made them all.
    """

    out: Path
    files: int
    nbytes: int
    bytes_read: int
    inexact: dict[str, int]
    ranks: tuple[int, ...]
    world: int
    linked: int = 0
    resumed: int = 0
    intact: int = 0
    uploaded: "Uploaded | None" = None


def deploy(plan: Plan, inventory: Inventory) -> tuple[Engine, Layout, Context]:
    """What a plan's files are made by. Raises as `prepare` does."""
    refuse_errors(inventory)
    refuse_infeasible(plan)
    request = Request(**plan.request)  # type: ignore[arg-type]
    engine = engine_for(request.engine, inventory.family)
    if engine.layout is None:
        raise UsageError(
            f"{engine.title} has no file format for shards of {inventory.family.title} that this version knows",
            hint="Serve the checkpoint itself, as `plan` says, or the folders of --engine node.",
        )
    if plan.unwritten is not None:
        raise UsageError(f"no shards for this: {plan.unwritten}", hint="Serve the checkpoint itself, as `plan` says.")
    return engine, engine.layout, Context(inventory, choose(inventory, request).at)


def world_of(plan: Plan, inventory: Inventory) -> int:
    """How many ranks a plan's files are for. Raises as `prepare` does."""
    _, layout, context = deploy(plan, inventory)
    return context.at.readers(layout.by_node)


def prepare(checkpoint: Checkpoint, inventory: Inventory, plan: Plan, ranks: tuple[int, ...] | None = None) -> Job:
    """Turn a plan into a job for `ranks` (default: all). Reads headers and small files only.

    Raises InfeasiblePlan, IncompleteCheckpoint, and UsageError where the engine has no file layout or no such rank.
    """
    engine, layout, context = deploy(plan, inventory)
    at, world = context.at, context.at.readers(layout.by_node)
    wanted = ranks if ranks is not None else tuple(range(world))
    beyond = [rank for rank in wanted if not 0 <= rank < world]
    if beyond:
        raise UsageError(f"--ranks: rank {beyond[0]} of {world}; the last one is {world - 1}")
    recipe = make_recipe(checkpoint, engine, context, wanted)
    companions = _copied(checkpoint, layout.copied(context))
    companions |= layout.companions(checkpoint.document, context)
    if layout.by_node:
        folders = {rank: layout.file_name(rank, 0, at) for rank in wanted}
        companions = {folder + name: content for folder in folders.values() for name, content in companions.items()}
        companions |= {folder + INDEX_FILE: _index(recipe, rank) for rank, folder in folders.items()}
    companions[PLAN_NAME] = plan.to_json().encode()
    companions[SKELETON_NAME] = write_skeleton(checkpoint)
    return Job(layout.name, plan.source, plan.request, recipe, companions, wanted, world, layout.identity(context),
               partial(prepare, checkpoint, inventory, plan))  # fmt: skip


def _index(recipe: Recipe, rank: int) -> bytes:
    """The index of a rank's folder, as checkpoints have one."""
    files = [file for file in recipe.files if rank in file.ranks]
    plain = [json.dumps(PurePath(file.name).name) for file in files]
    weight_map = {name: where for where, file in zip(plain, files, strict=True) for name in file.tensors}
    total = sum(info.nbytes for file in files for info in file.tensors.values())
    # As json.dumps with indent=2 writes it, which takes three times as long and 20 MB more.
    text = BytesIO()
    text.write(f'{{\n  "metadata": {{\n    "total_size": {total}\n  }},\n  "weight_map": {{'.encode())
    for number, name in enumerate(sorted(weight_map)):
        text.write(f"{',' if number else ''}\n    {json.dumps(name)}: {weight_map[name]}".encode())
    text.write(b"\n  }\n}\n")
    return text.getvalue()


def _copied(checkpoint: Checkpoint, names: dict[str, str]) -> dict[str, bytes]:
    sizes = checkpoint.source.sizes()
    content: dict[str, bytes] = {}
    for original in sorted(set(names.values())):
        if sizes.get(original, COPIED_FILE_LIMIT) < COPIED_FILE_LIMIT:
            with checkpoint.source.open(original) as file:
                content[original] = file.read(0, file.nbytes)
    return {name: content[original] for name, original in names.items() if original in content}


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

    A share of the ranks joins a result of others that stands there, which has these ranks too when all of them are on
    disk; `overwrite` replaces the whole of it. Where an earlier run of the same job ended early, this goes on from
    there, and `on_resume` gets the bytes of tensors that are there already; `restart` throws them away. Raises an
    OutputError (OtherRun where the earlier run was of another job, RanksThere where a share has nothing to do),
    ReadFailed, WriteFailed, SourceChanged, or InexactCast where an FP8 cast would round.
    """
    check_output(out, checkpoint.source.root, overwrite, job.is_share)
    recipe, run = job.recipe, _run(job, checkpoint)
    with Staging(out, job.share) as staging:
        check_output(out, checkpoint.source.root, overwrite, job.is_share)  # an earlier result may be back in its place
        _undo_join(job, staging, overwrite)
        earlier = _earlier(staging, run, recipe, checkpoint.source, restart)
        check_room(out, job.nbytes_to_write(checkpoint.source, out) - staging.nbytes_on_disk())
        files = [_stage(file, staging, checkpoint.source, earlier.stop > 0) for file in recipe.files]
        sink = FileSink(files)
        journal = Journal(staging.journal, run, earlier.stop, staging.settle, sink.flush)
        resumed = sum(step.nbytes for step in earlier.finished)
        if resumed:
            on_resume(resumed)
        try:
            result = copy(
                recipe,
                checkpoint.source,
                sink,
                workers or default_workers(),
                on_progress,
                allow_inexact=allow_inexact,
                finished=earlier.finished,
                log=journal,
            )
            ranks = _complete(job, result, staging, overwrite)
        except BaseException:
            with contextlib.suppress(WriteFailed):
                journal.save()
            raise
    linked = [file.nbytes for file, staged in zip(recipe.files, files, strict=True) if staged is None]
    written = len(recipe.files) - len(linked)
    return Outcome(out, written, job.nbytes - sum(linked), result.bytes_read, result.inexact, ranks, job.world,
                   len(linked), resumed, len(checkpoint.source.intact))  # fmt: skip


def _complete(job: Job, result: CopyResult, staging: Staging, overwrite: bool) -> tuple[int, ...]:
    """What is left to do when all tensors are where they belong. Returns the ranks that are in the output then."""
    for file in job.recipe.files:
        staging.link(file.name, file.links)
    for name, content in job.companions.items():
        staging.write_file(name, content)
    own = _manifest(job, result.digests)
    with staging.ending():
        there = result_to_join(job, staging.out, overwrite)
        if there is None:
            staging.commit(own.to_bytes(), overwrite)
            return own.ranks
        joined = _joined(there, own, job, staging.out)
        staging.join(joined.to_bytes(), new_files(there, own, joined))
        return joined.ranks


def result_to_join(job: Job, out: Path, overwrite: bool) -> Manifest | None:
    """The result of other ranks in `out` that a share is to join, if there is one that is not to be replaced.

    Raises RanksThere, OtherDeployment or OutputNotEmpty where it cannot be joined.
    """
    if overwrite or not job.is_share or not (out / MANIFEST_NAME).is_file():
        return None
    try:
        there = load_manifest(out)
    except NotAResult as error:
        raise OtherDeployment(f"{error}; nothing can join it") from None
    refuse_unjoinable(str(out), there, job.made, job.ranks)
    return there


def _undo_join(job: Job, staging: Staging, overwrite: bool) -> None:
    """Bring back what an earlier run of this share had moved into the output when it was killed.

    Raises as `result_to_join` does.
    """
    if overwrite or not job.is_share:
        return
    with staging.out_locked():
        there = result_to_join(job, staging.out, overwrite)
        if there is not None:
            files = {file.name for file in job.recipe.files}
            links = {link for file in job.recipe.files for link in file.links}
            staging.take_back(files, sorted((files | links | job.companions.keys()) - there.names))


def _joined(there: Manifest, own: Manifest, job: Job, out: Path) -> Manifest:
    """The manifest of a result and a share together: that of one run of all their ranks."""
    if job.of_ranks is None:
        raise ValueError("a job of all ranks there are joins nothing")
    union = job.of_ranks(tuple(sorted({*there.ranks, *own.ranks})))
    joined = _manifest(union, joined_digests((there, own), union.recipe.files))
    refuse_other_companions(str(out), there.companions, joined.companions)
    return joined


def _run(job: Job, checkpoint: Checkpoint) -> Run:
    """What tells this run's work from any other's. Raises SourceChanged where a file is not what its header said."""
    for file in checkpoint.files:
        with checkpoint.source.open(file.name) as opened:
            if (opened.nbytes, opened.mtime_ns) != (file.nbytes, file.mtime_ns):
                raise SourceChanged(f"{file.name}: written to since its header was read")
    recipe = xxhash.xxh3_128()
    for output in job.recipe.files:
        recipe.update(output.header)
    for step in job.recipe.steps:  # a journal has their numbers
        recipe.update(step.source.name.encode())
    return Run(
        tool_version=__version__,
        origin=job.origin,
        request=job.request,
        ranks=job.ranks,
        times={file.name: file.mtime_ns for file in checkpoint.files},
        files={file.name: file.nbytes for file in job.recipe.files},
        recipe_digest=recipe.hexdigest(),
    )


def _earlier(staging: Staging, run: Run, recipe: Recipe, source: Source, restart: bool) -> Unfinished:
    """The work that an earlier run of the same job left, if it is whole and wanted; else nothing, in an empty folder.

    Raises OtherRun where it is another job's.
    """
    earlier = None if restart else read_journal(staging.journal)
    if earlier is not None:
        refuse_other(earlier.run, run, staging.path)
        staging.keep_only({file.name for file in recipe.files})
        there = (staging.holds(file.name, file.nbytes, _original(file, source)) for file in recipe.files)
        if all(there) and _fits(earlier.finished, recipe):
            return earlier
    staging.begin()
    return Unfinished(run, [], 0)


def _original(file: OutputFile, source: Source) -> Path | None:
    """The file of the checkpoint that an output file is byte by byte, if it is one."""
    return source.original(file.source) if file.source else None


def _fits(finished: list[Finished], recipe: Recipe) -> bool:
    """Whether steps of a journal are this recipe's."""
    return all(
        step.number < len(recipe.steps) and len(step.digests) == DIGEST_BYTES * pieces_of(recipe.steps[step.number])
        for step in finished
    )


def _stage(file: OutputFile, staging: Staging, source: Source, is_there: bool) -> StagedFile | None:
    """A file with its header; None where it is a link to the checkpoint's own, which must not be written to."""
    original = _original(file, source)
    if original and (staging.links_to(file.name, original) if is_there else staging.adopt(file.name, original)):
        return None
    if is_there:
        return staging.reopen(file.name)
    staged = staging.create(file.name, file.nbytes)
    staged.write(0, memoryview(file.header))
    return staged


def _manifest(job: Job, digests: Mapping[tuple[int, str], str]) -> Manifest:
    """What a job wrote, with the digests of its tensors by (file number, name)."""
    made = job.made
    companions = tuple(
        ManifestCompanion(name=name, nbytes=len(content), digest=digest_of(content))
        for name, content in sorted(job.companions.items())
    )
    return Manifest(
        schema_version=1,
        tool_version=__version__,
        digest="",
        layout=made.layout,
        world=made.world,
        ranks=job.ranks,
        source=made.source,
        plan_digest=made.plan_digest,
        identity=made.identity,
        files=_manifest_files(job.recipe.files, digests),
        companions=companions,
        left_out=job.recipe.left_out,
    ).sealed()


def _manifest_files(files: tuple[OutputFile, ...], digests: Mapping[tuple[int, str], str]) -> tuple[ManifestFile, ...]:
    """The entries of weight files, from what copying hashed."""
    tensors: list[dict[str, str]] = [{} for _ in files]
    for (number, name), digest in digests.items():
        tensors[number][name] = digest
    return tuple(
        ManifestFile(
            name=file.name,
            ranks=file.ranks,
            nbytes=file.nbytes,
            payload=file.payload,
            header_digest=digest_of(file.header),
            tensors=found,
            pieces=file.pieces,
            links=file.links,
        )
        for file, found in zip(files, tensors, strict=True)
    )
