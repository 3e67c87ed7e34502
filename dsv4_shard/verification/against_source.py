"""Rank files ↔ source: every byte is derived again and compared.

The plan is made again, and its recipe runs into a sink that compares. Every source tensor is accounted for.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dsv4_shard.checkpoint import Checkpoint, Inventory, differences, origin_of
from dsv4_shard.errors import BadSkeleton, ForeignPlan, ReadFailed
from dsv4_shard.limits import ARCHIVE
from dsv4_shard.planning import check_plan, load_plan
from dsv4_shard.reassembly.merge_job import prepare_merge
from dsv4_shard.sharding.header_archive import SKELETON_NAME, read_skeleton
from dsv4_shard.sharding.job import Job, prepare
from dsv4_shard.sharding.manifest import NATIVE, PLAN_NAME, Manifest, has_pieces_of
from dsv4_shard.sharding.recipe import OutputFile, Recipe
from dsv4_shard.sharding.statement import is_statement
from dsv4_shard.storage import MANIFEST_NAME, digest_of, read_regular
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.verification.compared_bytes import ComparedBytes, compare_bytes
from dsv4_shard.verification.contents import wrong_sha256
from dsv4_shard.verification.documents import Problem
from dsv4_shard.verification.source_accounts import account
from dsv4_shard.verification.statements import check_statements


class Compared(NamedTuple):
    """The result of a comparison with the source.

    Attributes:
        problems: The differences.
        accounts: Fate -> number of source tensors.
        notes: What could not be compared.
    """

    problems: list[Problem]
    accounts: dict[str, int]
    notes: list[str]


def compare(
    folder: Path,
    manifest: Manifest,
    source: tuple[Checkpoint, Inventory],
    sound: Collection[str],
    workers: int,
    on_progress: Callable[[int], None],
) -> Compared:
    """Derive each output byte from the source and compare it; account for each source tensor.

    Args:
        folder: The result folder.
        manifest: Its manifest.
        source: The checkpoint and its inventory.
        sound: Names of the files whose size and header are those of the manifest.
        workers: Number of workers.
        on_progress: Receives the bytes compared since its last call. Any worker may call it.

    Raises:
        ForeignPlan: The result was made from another checkpoint.
        BadPlan: plan.json was edited.
    """
    checkpoint, inventory = source
    job = _job(folder, manifest, checkpoint, inventory).like(manifest, folder)
    compared = compare_bytes(folder, job.recipe, checkpoint.source, sound, workers, on_progress)
    misstated, notes = check_statements(folder, job, manifest, checkpoint, workers)
    accounts, unaccounted = account(job.recipe, inventory, manifest)
    problems = (
        *_check_shares(job, manifest),
        *_check_companions(folder, job, manifest),
        *compared.problems,
        *_check_digests(folder, job.recipe, manifest, checkpoint, compared),
        *misstated,
        *unaccounted,
    )
    return Compared(list(problems), accounts, [*notes, *_unknown_commit(job, checkpoint)])


def _unknown_commit(job: Job, checkpoint: Checkpoint) -> Iterator[str]:
    """A note if the result names another commit than the source does."""
    if checkpoint.source.revision != job.origin.revision:
        said = short_name(job.origin.revision or "no commit")
        yield f"the result names {said} as the checkpoint's commit, which {checkpoint.source.label} does not say"


def _job(folder: Path, manifest: Manifest, checkpoint: Checkpoint, inventory: Inventory) -> Job:
    """The job that should have been written: by the plan, or, for a merged checkpoint, its own files."""
    if manifest.layout == NATIVE:
        return _job_of_merge(folder, manifest, checkpoint, inventory)
    try:
        written = load_plan(folder / PLAN_NAME)
        plan = check_plan(written, checkpoint, inventory)
    except ForeignPlan as error:
        error.hint = f"Name the checkpoint that {folder} was made from: {short_name(manifest.source.label)}"
        raise
    # A copy of the checkpoint elsewhere does not know its commit, or is the first to know it.
    plan = plan.model_copy(update={"source": written.source})
    job = prepare(checkpoint, inventory, plan, manifest.ranks)
    if has_pieces_of(manifest, job.recipe):
        return job
    # Made from rank files and compared with the checkpoint, or reversed.
    other = prepare(checkpoint, inventory, plan, manifest.ranks, in_parts=checkpoint.source.witness is not None)
    return other if has_pieces_of(manifest, other.recipe) else job


def _job_of_merge(folder: Path, manifest: Manifest, checkpoint: Checkpoint, inventory: Inventory) -> Job:
    """The job of a merged checkpoint: the source's own files.

    Raises:
        ForeignPlan: It was not merged from the bytes of this checkpoint.
    """
    origin = origin_of(checkpoint, manifest.source.label)
    for difference in differences(manifest.source, origin):
        raise ForeignPlan(
            f"{folder}: not merged from this checkpoint's bytes: {difference}",
            hint="Shards that hold wo_a decoded or experts cast merge into other bytes: name them after --against.",
        )
    origin = origin.model_copy(update={"revision": manifest.source.revision})
    return replace(prepare_merge(checkpoint, inventory), origin=origin)


def _check_shares(job: Job, manifest: Manifest) -> Iterator[Problem]:
    """A problem if the manifest assigns files to ranks in another way than the plan."""
    written = {one.name: (one.ranks, one.links, one.nbytes, one.payload, one.pieces) for one in manifest.files}
    planned = {one.name: (one.ranks, one.links, one.nbytes, one.payload, one.pieces) for one in job.recipe.files}
    if (written, manifest.world, manifest.identity) != (planned, job.world, job.identity):
        message = "shares files out in another way than the plan does"
        yield Problem(kind="wrong-manifest", file=MANIFEST_NAME, message=message)
    elif (manifest.layout, manifest.plan_digest) != (job.made.layout, job.made.plan_digest):
        yield Problem(kind="wrong-manifest", file=MANIFEST_NAME, message="names another layout or plan")
    elif manifest.left_out != job.recipe.left_out:
        message = "leaves out other tensors than the plan does"
        yield Problem(kind="wrong-manifest", file=MANIFEST_NAME, message=message)
    for difference in differences(manifest.source, job.origin):
        message = f"names another source than the plan: {difference}"
        yield Problem(kind="wrong-manifest", file=MANIFEST_NAME, message=message)


def _check_companions(folder: Path, job: Job, manifest: Manifest) -> Iterator[Problem]:
    """Problems of small files that are not those which the source and the plan give.

    The manifest's digests stand for the files: `verify` compares these with them.
    """

    def problem(name: str, message: str) -> Problem:
        return Problem(kind="differs-from-source", file=name, message=message)

    written = {entry.name: entry.digest for entry in manifest.companions if not is_statement(entry.name)}
    for name in sorted(written.keys() - job.companions.keys()):
        yield problem(name, "neither the source nor the plan gives such a file")
    for name, content in sorted(job.companions.items()):
        if name not in written:
            yield problem(name, "is missing from the manifest; the source and the plan give it")
        elif written[name] != digest_of(content) and not (
            name == SKELETON_NAME and _unpacks_alike(folder / name, content)
        ):
            yield problem(name, "is not what the source and the plan give")


def _unpacks_alike(path: Path, content: bytes) -> bool:
    """Whether two source.zip hold the same files. Their bytes depend on the release of zlib."""
    try:
        return read_skeleton(read_regular(path, ARCHIVE), path.name) == read_skeleton(content, path.name)
    except (BadSkeleton, ReadFailed):
        return False


def _check_digests(
    folder: Path, recipe: Recipe, manifest: Manifest, checkpoint: Checkpoint, compared: ComparedBytes
) -> Iterator[Problem]:
    """Problems of digests in the manifest that are not those of the bytes.

    A file that is a hard link to the checkpoint's own always equals its source: there, other digests mean that both
    were changed.
    """
    written = {entry.name: entry for entry in manifest.files}
    for number, whole in compared.sha256.items():
        file, entry = recipe.files[number], written.get(recipe.files[number].name)
        if entry is None:
            continue
        other = [name for name in file.tensors if entry.tensors.get(name) != compared.digests[number, name]]
        if other and (original := _link_to(folder / file.name, file, checkpoint)):
            message = f"its bytes differ from what was written; it is a link to {original}"
            yield from (Problem(kind="damaged-tensor", file=file.name, tensor=name, message=message) for name in other)
        elif other:
            message = f"names another digest of {file.name}: {short_name(other[0])} than that of its bytes"
            yield Problem(kind="wrong-manifest", file=MANIFEST_NAME, message=message)
        elif entry.sha256 not in (None, whole):
            yield wrong_sha256(entry)


def _link_to(path: Path, file: OutputFile, checkpoint: Checkpoint) -> Path | None:
    """The checkpoint's own file to which `path` is a hard link; None if it is a file of its own."""
    original = checkpoint.source.original(file.source) if file.source else None
    return original if original is not None and path.is_file() and path.samefile(original) else None
