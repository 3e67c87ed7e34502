"""Rank files ↔ source: every byte is derived again and compared.

The plan is made again, and its recipe runs into a sink that compares. Every source tensor is accounted for.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from dsv4_shard.checkpoint import Checkpoint, Inventory, differences, origin_of
from dsv4_shard.errors import BadSkeleton, ForeignPlan, ReadFailed
from dsv4_shard.limits import ARCHIVE
from dsv4_shard.planning import check_plan, load_plan
from dsv4_shard.reassembly.merge_job import prepare_merge
from dsv4_shard.sharding.copy import Listeners, copy, pays_processes
from dsv4_shard.sharding.file_hasher import FileHasher, HashedFile
from dsv4_shard.sharding.header_archive import SKELETON_NAME, read_skeleton
from dsv4_shard.sharding.job import Job, prepare
from dsv4_shard.sharding.manifest import NATIVE, PLAN_NAME, Manifest, has_pieces_of
from dsv4_shard.sharding.recipe import OutputFile, Recipe, Slice, SliceMap, Step
from dsv4_shard.sharding.statement import is_statement
from dsv4_shard.sources.local import LocalFile
from dsv4_shard.storage import MANIFEST_NAME, digest_of, read_regular
from dsv4_shard.tensors.geometry import whole_rectangle
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.verification.contents import wrong_sha256
from dsv4_shard.verification.documents import Problem
from dsv4_shard.verification.statements import check_statements

_DROP_BYTES = 64 << 20
"""Bytes of a file that are dropped from the page cache at a time."""


class _CompareSink:
    """Compares pieces with the bytes in the result's files. See `sharding.mover.Sink`."""

    def __init__(self, files: list[LocalFile | None]) -> None:
        self._files = files

    def put(self, file: int, offset: int, data: memoryview) -> int | None:
        """Return the offset of the first byte that differs, if any."""
        there = self._files[file]
        if there is None:
            return None
        found = bytearray(len(data))
        try:
            there.readinto(offset, memoryview(found))  # stays in the page cache until it is hashed
        except ReadFailed:
            found = bytearray()
        if found == data:
            return None
        return offset + next((i for i, (a, b) in enumerate(zip(found, data, strict=False)) if a != b), len(found))


class _Dropper:
    """Drops from the page cache what a hasher has hashed of files."""

    def __init__(self, files: list[LocalFile | None], hasher: FileHasher) -> None:
        self._files, self._hasher = files, hasher
        self._dropped: Counter[int] = Counter()

    def complete(self, file: int, start: int, stop: int) -> None:
        """Have the file hashed up to what was compared, and drop that now and then. See `Listeners.on_piece`."""
        there = self._files[file]
        if there is None:
            return
        self._hasher.complete(file, start, stop)
        if (hashed := self._hasher.hashed(file)) >= self._dropped[file] + _DROP_BYTES:
            there.drop(hashed)
            self._dropped[file] = hashed


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
    recipe = job.recipe
    problems = [*_check_shares(job, manifest), *_check_companions(folder, job, manifest)]
    files: list[LocalFile | None] = []
    for expected in recipe.files:
        try:
            file = LocalFile(folder / expected.name, expected.name)
        except ReadFailed:
            files.append(None)
            continue
        files.append(file)
        if file.read(0, min(len(expected.header), file.nbytes)) != expected.header:
            message = "its header is not the one that the source gives"
            problems.append(Problem(kind="wrong-header", file=expected.name, message=message))
    hashed = {
        number: HashedFile(folder / file.name, file.header, file.nbytes)
        for number, file in enumerate(recipe.files)
        if file.name in sound and files[number] is not None
    }
    try:
        with FileHasher(hashed, workers) as hasher:
            told = Listeners(on_progress, hasher.put, _Dropper(files, hasher).complete)
            copied = copy(
                recipe, checkpoint.source, _CompareSink(files), workers, told, allow_inexact=True,
                processes=pays_processes(recipe, checkpoint.source, workers),
            )  # fmt: skip
            sha256 = hasher.digests()
    finally:
        for opened in files:
            if opened is not None:
                opened.close()
    found = [(number, offset) for number, offsets in copied.differing.items() for offset in offsets]
    problems += [_locate(recipe, number, offset) for number, offset in found]
    alike = {number: digest for number, digest in sha256.items() if number not in copied.differing}
    problems += _check_digests(folder, recipe, manifest, checkpoint, copied.digests, alike)
    misstated, notes = check_statements(folder, job, manifest, checkpoint, workers)
    if checkpoint.source.revision != job.origin.revision:
        said = short_name(job.origin.revision or "no commit")
        notes.append(
            f"the result names {said} as the checkpoint's commit, which {checkpoint.source.label} does not say"
        )
    accounts, unaccounted = _account(recipe, inventory, manifest)
    return Compared([*problems, *misstated, *unaccounted], accounts, notes)


def _job(folder: Path, manifest: Manifest, checkpoint: Checkpoint, inventory: Inventory) -> Job:
    """The job that should have been written: by the plan, or, for a merged checkpoint, its own files."""
    if manifest.layout != NATIVE:
        try:
            written = load_plan(folder / PLAN_NAME)
            plan = check_plan(written, checkpoint, inventory)
        except ForeignPlan as error:
            error.hint = f"Name the checkpoint that {folder} was made from: {short_name(manifest.source.label)}"
            raise
        # A copy of the checkpoint elsewhere does not know its commit, or is the first to know it.
        plan = plan.model_copy(update={"source": written.source})
        job = prepare(checkpoint, inventory, plan, manifest.ranks)
        if not has_pieces_of(
            manifest, job.recipe
        ):  # made from rank files and compared with the checkpoint, or reversed
            other = prepare(checkpoint, inventory, plan, manifest.ranks, in_parts=checkpoint.source.witness is not None)
            job = other if has_pieces_of(manifest, other.recipe) else job
        return job
    origin = origin_of(checkpoint, manifest.source.label).model_copy(update={"revision": manifest.source.revision})
    for difference in differences(manifest.source, origin_of(checkpoint, manifest.source.label)):
        raise ForeignPlan(
            f"{folder}: not merged from this checkpoint's bytes: {difference}",
            hint="Ranks that hold other bytes than their checkpoint merge into another one: compare with the ranks.",
        )
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
    folder: Path,
    recipe: Recipe,
    manifest: Manifest,
    checkpoint: Checkpoint,
    digests: dict[tuple[int, str], str],
    sha256: dict[int, str],
) -> Iterator[Problem]:
    """Problems of digests in the manifest that are not those of the bytes.

    A file that is a hard link to the checkpoint's own always equals its source: there, other digests mean that both
    were changed.

    Args:
        folder: The result folder.
        recipe: The recipe of its files.
        manifest: Its manifest.
        checkpoint: The source.
        digests: (file number, tensor name) -> digest of the bytes that the source gives.
        sha256: File number -> SHA-256, of the files that equal their source.
    """
    written = {entry.name: entry for entry in manifest.files}
    for number, whole in sha256.items():
        file, entry = recipe.files[number], written.get(recipe.files[number].name)
        if entry is None:
            continue
        other = [name for name in file.tensors if entry.tensors.get(name) != digests[number, name]]
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


def _locate(recipe: Recipe, number: int, offset: int) -> Problem:
    """The problem at byte `offset` of file `number`: names the tensor that contains it."""
    file = recipe.files[number]
    position = offset - len(file.header)
    name = next(name for name, info in file.tensors.items() if info.start <= position < info.stop)
    message = f"byte {offset:,} differs from the source"
    return Problem(kind="differs-from-source", file=file.name, tensor=name, message=message)


def _account(recipe: Recipe, inventory: Inventory, manifest: Manifest) -> tuple[dict[str, int], list[Problem]]:
    """Count the source tensors by fate: on every rank, split exactly once, on one rank, or left out.

    Tensors that fit none of these are returned as problems.
    """
    complete = len(manifest.ranks) == manifest.world
    readers = [file.ranks for file in recipe.files]
    accounts: Counter[str] = Counter()
    lost: list[str] = []
    for step in _wholes(recipe):
        is_expert = inventory.names[step.source.name].expert >= 0
        fate = _fate(step, is_expert, readers, set(manifest.ranks), complete)
        if fate is None:
            lost.append(step.source.name)
        else:
            accounts[fate] += 1
    decoded = {step.scale.name for step in recipe.steps if step.scale is not None}
    moved = {step.source.name for step in recipe.steps if not step.makes_scale}
    accounts["decoded with their weights"] = len(decoded - recipe.left_out.keys())
    accounts["left out"] = len(recipe.left_out)
    rest = sorted(inventory.names.keys() - moved - decoded - recipe.left_out.keys())
    if complete:
        lost += rest
    else:
        accounts["only on ranks that are not here"] = len(rest)
    message = "the ranks do not hold each of its bytes exactly once, or all of them all"
    problems = [Problem(kind="unaccounted", file="", tensor=name, message=message) for name in lost]
    return {fate: count for fate, count in accounts.items() if count}, problems


_WHOLE = "whole on every rank"

_ONE_RANK = "whole on one rank, their expert's"

_SPLIT = "split over the ranks"


def _wholes(recipe: Recipe) -> Iterator[Step]:
    """The steps that move weights or scales; the parts of one as a single step with the cuts of all."""
    wholes: list[Step] = []
    for step in recipe.steps:
        if step.part:
            landings = {landing.tensor: landing for landing in wholes[-1].landings}
            for landing in step.landings:
                above = landings.get(landing.tensor, landing._replace(spread=()))
                landings[landing.tensor] = above._replace(spread=_extended(above.spread, landing.spread))
            wholes[-1] = replace(wholes[-1], landings=tuple(landings.values()))
        elif not step.makes_scale:
            wholes.append(step)
    return iter(wholes)


def _extended(spread: SliceMap, more: SliceMap) -> SliceMap:
    """A spread with the cuts of the next rows: each extends the cut of the same columns and files above it, if any."""
    extended = dict(enumerate(spread))
    ends = {(cut.rectangle.row_stop, cut.rectangle.start, files): at for at, (cut, files) in extended.items()}
    for cut, files in more:
        area = cut.rectangle
        at = ends.get((area.row_start, area.start, files), len(extended))
        above = extended[at][0].rectangle if at in extended else area
        extended[at] = (Slice(above._replace(row_stop=area.row_stop), cut.pad_cols, cut.pad_rows), files)
    return tuple(extended.values())


def _fate(step: Step, is_expert: bool, readers: list[tuple[int, ...]], ranks: set[int], complete: bool) -> str | None:
    """How the destinations of a step cover its source; None if they do not cover it exactly.

    Args:
        step: The step of one source tensor.
        is_expert: Whether it is a routed expert's tensor.
        readers: The ranks that read each file.
        ranks: The ranks in this folder.
        complete: Whether the folder has all ranks.
    """
    shape = tuple(size * step.repeat for size in step.source.shape)
    whole = whole_rectangle(step.source.dtype, shape)
    fates: set[str | None] = set()
    for landing in step.landings:
        areas = {cut.rectangle: files for cut, files in landing.spread if cut.rectangle.nbytes}
        holders = {rank for files in areas.values() for number in files for rank in readers[number]}
        if areas.keys() == {whole}:
            padded = {
                rank
                for cut, files in landing.spread
                for number in files
                for rank in readers[number]
                if not cut.rectangle.nbytes
            }
            if holders == ranks:
                fates.add(_WHOLE)
            elif len(holders) == 1 and holders | padded == ranks:
                fates.add(_SPLIT)  # one rank has all of it, the others have padding alone
            else:
                fates.add(_ONE_RANK if is_expert and len(holders) == 1 else None)
            continue
        cuts = sorted(areas)
        disjoint = all(a.row_stop <= b.row_start or a.stop <= b.start for a, b in pairwise(cuts))
        covered = not complete or sum(cut.nbytes for cut in cuts) == whole.nbytes
        even = len({len(files) for files in areas.values()}) == 1
        fates.add(_SPLIT if disjoint and covered and even else None)
    return fates.pop() if len(fates) == 1 else None
