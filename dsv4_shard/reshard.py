"""Plan → rank files: checks everything first, then lets `copying` move the bytes and `commit` make them real."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsv4_shard import __version__
from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.choosing import choose
from dsv4_shard.commit import FileSink, Staging, check_output, check_room, pwrite_all
from dsv4_shard.copying import CopyResult, copy, default_workers
from dsv4_shard.engines import find_engine
from dsv4_shard.engines.base import Context, Request
from dsv4_shard.errors import UsageError
from dsv4_shard.inventory import Inventory
from dsv4_shard.manifest import PLAN_NAME, Manifest, ManifestCompanion, digest_of, manifest_files
from dsv4_shard.plan import Plan, refuse_errors, refuse_infeasible
from dsv4_shard.recipe import Recipe, make_recipe

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
        """Bytes that the output takes, the manifest apart."""
        return self.recipe.nbytes + sum(map(len, self.companions.values()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run wrote."""

    out: Path
    files: int
    nbytes: int
    bytes_read: int
    inexact: dict[str, int]


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
    wanted = ranks if ranks is not None else tuple(range(at.world))
    beyond = [rank for rank in wanted if not 0 <= rank < at.world]
    if beyond:
        raise UsageError(f"--ranks: rank {beyond[0]} of {at.world}; the last one is {at.world - 1}")
    context = Context(inventory, at)
    recipe = make_recipe(checkpoint, engine, context, wanted)
    companions = _copied(checkpoint, engine.layout.copied(context))
    companions |= engine.layout.companions(checkpoint.document, context)
    companions[PLAN_NAME] = plan.to_json().encode()
    return Job(plan, recipe, companions, wanted, at.world, engine.layout.identity(context))


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
    check_room(out, job.nbytes)
    recipe = job.recipe
    with Staging(out) as staging:
        fds = [staging.create(file.name, file.nbytes) for file in recipe.files]
        paths = [staging.folder / file.name for file in recipe.files]
        for file, fd, path in zip(recipe.files, fds, paths, strict=True):
            pwrite_all(fd, 0, memoryview(file.header), path)
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
    return Outcome(out, len(recipe.files), job.nbytes, result.bytes_read, result.inexact)


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
