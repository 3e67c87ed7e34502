"""Plan → rank files: checks everything first, then lets `copying` move the bytes and `commit` make them real."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath

from dsv4_shard import __version__
from dsv4_shard.checkpoint import INDEX_FILE, Checkpoint
from dsv4_shard.choosing import choose
from dsv4_shard.commit import FileSink, Staging, check_output, check_room, pwrite_all
from dsv4_shard.copying import CopyResult, copy, default_workers
from dsv4_shard.engines import find_engine
from dsv4_shard.engines.base import Context, Request
from dsv4_shard.errors import UsageError
from dsv4_shard.inventory import Inventory
from dsv4_shard.manifest import PLAN_NAME, Manifest, ManifestCompanion, digest_of, manifest_files
from dsv4_shard.plan import Plan, refuse_errors, refuse_infeasible
from dsv4_shard.recipe import OutputFile, Recipe, make_recipe
from dsv4_shard.sources import LocalSource

COPIED_FILE_LIMIT = 256 << 20
"""A tokenizer larger than this is no tokenizer."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a run will write, known before it writes: the recipe and the small files."""

    plan: Plan
    recipe: Recipe
    companions: dict[str, bytes]
    ranks: tuple[int, ...]
    world: int
    identity: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of the output, the manifest apart."""
        return self.recipe.nbytes + sum(map(len, self.companions.values()))

    def nbytes_to_write(self, source: LocalSource, out: Path) -> int:
        """`nbytes` without files that can be links to the checkpoint's own."""
        linked = [file.nbytes for file in self.recipe.files if file.source and source.shares_disk(file.source, out)]
        return self.nbytes - sum(linked)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run wrote; `linked` files are links to the checkpoint's own, and not in `files` and `nbytes`."""

    out: Path
    files: int
    nbytes: int
    bytes_read: int
    inexact: dict[str, int]
    linked: int = 0


def prepare(checkpoint: Checkpoint, inventory: Inventory, plan: Plan, ranks: tuple[int, ...] | None = None) -> Job:
    """Turn a plan into a job for `ranks` (default: all). Reads headers and small files only.

    Raises InfeasiblePlan, IncompleteCheckpoint, and UsageError where the engine has no file layout or no such rank.
    """
    refuse_errors(inventory)
    refuse_infeasible(plan)
    request = Request(**plan.request)  # type: ignore[arg-type]
    engine = find_engine(request.engine)
    if engine.layout is None:
        raise UsageError(f"{engine.title} has no file format for shards", hint="`plan` is all there is for it.")
    if plan.unwritten is not None:
        raise UsageError(f"no shards for this: {plan.unwritten}", hint="Serve the checkpoint itself, as `plan` says.")
    at = choose(inventory, request).at
    layout, world = engine.layout, at.readers(engine.layout.by_node)
    wanted = ranks if ranks is not None else tuple(range(world))
    beyond = [rank for rank in wanted if not 0 <= rank < world]
    if beyond:
        raise UsageError(f"--ranks: rank {beyond[0]} of {world}; the last one is {world - 1}")
    context = Context(inventory, at)
    recipe = make_recipe(checkpoint, engine, context, wanted)
    companions = _copied(checkpoint, layout.copied(context))
    companions |= layout.companions(checkpoint.document, context)
    if layout.by_node:
        folders = {rank: layout.file_name(rank, 0, at) for rank in wanted}
        companions = {folder + name: content for folder in folders.values() for name, content in companions.items()}
        companions |= {folder + INDEX_FILE: _index(recipe, rank) for rank, folder in folders.items()}
    companions[PLAN_NAME] = plan.to_json().encode()
    return Job(plan, recipe, companions, wanted, world, layout.identity(context))


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
    content = {}
    for name, original in names.items():
        if sizes.get(original, COPIED_FILE_LIMIT) < COPIED_FILE_LIMIT:
            with checkpoint.source.open(original) as file:
                content[name] = file.read(0, file.nbytes)
    return content


def reshard(
    job: Job,
    checkpoint: Checkpoint,
    out: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    allow_inexact: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Write a job's files into the folder `out`, which appears whole or not at all.

    Raises an OutputError, ReadFailed, WriteFailed, SourceChanged, or InexactCast where an FP8 cast would round.
    """
    check_output(out, checkpoint.source.root, overwrite)
    check_room(out, job.nbytes_to_write(checkpoint.source, out))
    recipe = job.recipe
    with Staging(out) as staging:
        fds = [_stage(file, staging, checkpoint.source) for file in recipe.files]
        paths = [staging.folder / file.name for file in recipe.files]
        result = copy(
            recipe,
            checkpoint.source,
            FileSink(fds, paths),
            workers or default_workers(),
            on_progress,
            allow_inexact=allow_inexact,
        )
        for file in recipe.files:
            staging.link(file.name, file.links)
        for name, content in job.companions.items():
            staging.write_file(name, content)
        staging.commit(_manifest(job, result).to_bytes(), overwrite)
    linked = [file.nbytes for file, fd in zip(recipe.files, fds, strict=True) if fd is None]
    written = len(recipe.files) - len(linked)
    return Outcome(out, written, job.nbytes - sum(linked), result.bytes_read, result.inexact, len(linked))


def _stage(file: OutputFile, staging: Staging, source: LocalSource) -> int | None:
    """A new file with its header; None where it is a link to the checkpoint's own, which must not be written to."""
    if file.source and staging.adopt(file.name, source.root / file.source):
        return None
    fd = staging.create(file.name, file.nbytes)
    pwrite_all(fd, 0, memoryview(file.header), staging.folder / file.name)
    return fd


def _manifest(job: Job, result: CopyResult) -> Manifest:
    companions = tuple(
        ManifestCompanion(name=name, nbytes=len(content), digest=digest_of(content))
        for name, content in sorted(job.companions.items())
    )
    assert job.plan.layout is not None, "prepare refuses plans without a layout"
    return Manifest(
        schema_version=1,
        tool_version=__version__,
        digest="",
        layout=job.plan.layout,
        world=job.world,
        ranks=job.ranks,
        source=job.plan.source,
        plan_digest=digest_of(job.companions[PLAN_NAME]),
        identity=job.identity,
        files=manifest_files(job.recipe.files, result.digests),
        companions=companions,
        left_out=job.recipe.left_out,
    ).sealed()
