"""Rank files ↔ manifest ↔ source: what a result folder holds is what was written, and what the checkpoint holds.

Alone, a result is held against its manifest: every file, size, header and digest. Against the source, the plan is made
again, the recipe run once more, and each byte that it would write is compared with the one that stands there; then
every source tensor is accounted for.
"""

import filecmp
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dsv4_shard.blocks import whole_rectangle
from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.copying import copy
from dsv4_shard.cpus import default_workers
from dsv4_shard.digests import digest_of, hash_tensor
from dsv4_shard.errors import HeaderError, ReadFailed
from dsv4_shard.header import LENGTH_BYTES, MAX_HEADER_BYTES, Header, read_header
from dsv4_shard.inventory import Inventory
from dsv4_shard.manifest import MANIFEST_NAME, PLAN_NAME, Manifest, ManifestFile, load_manifest
from dsv4_shard.planfile import check_plan, load_plan
from dsv4_shard.recipe import Recipe, Step
from dsv4_shard.reshard import Job, prepare
from dsv4_shard.sources import LocalFile

_MISMATCHES_KEPT = 100
"""For each file: what differs in more places than that differs everywhere."""


class Problem(BaseModel):
    """Something that is not as it should be. `tensor` is None for what concerns a whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    file: str
    message: str
    tensor: str | None = None


class Verification(BaseModel):
    """What was verified and what was found; `problems` empty means that all is as it should be.

    `accounts` counts the source tensors by what became of them, where the source was compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    layout: str
    ranks: tuple[int, ...]
    world: int
    files: int
    tensors: int
    bytes: int
    against: str | None
    accounts: dict[str, int]
    left_out: dict[str, int]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    folder: Path,
    source: tuple[Checkpoint, Inventory] | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Verification:
    """Verify the result in `folder`, and against its source if that is given.

    Raises NotAResult where there is no sound manifest, ForeignPlan where the source is another checkpoint.
    """
    manifest = load_manifest(folder)
    workers = workers or default_workers()
    problems = [*_check_companions(folder, manifest), *_check_ranks(manifest)]
    readable: list[ManifestFile] = []
    for entry in manifest.files:
        found = list(_check_file(folder, entry, manifest))
        problems += found
        if not found:
            readable.append(entry)
            problems += _check_links(folder, entry)
    accounts: dict[str, int] = {}
    notes: list[str] = []
    if source is None:
        problems += _check_tensors(folder, readable, workers, on_progress)
    elif any(problem.file == PLAN_NAME for problem in problems):
        notes.append("the source was not compared: plan.json, which says how, is not what was written")
    else:
        more, accounts = _compare(folder, manifest, source, workers, on_progress)
        problems += more
    return Verification(
        folder=str(folder),
        layout=manifest.layout,
        ranks=manifest.ranks,
        world=manifest.world,
        files=len(manifest.files),
        tensors=sum(len(entry.tensors) for entry in manifest.files),
        bytes=sum(entry.nbytes for entry in manifest.files),
        against=source[0].source.label if source else None,
        accounts=accounts,
        left_out=dict(Counter(manifest.left_out.values())),
        problems=tuple(problems),
        notes=(*_strangers(folder, manifest), *notes),
    )


def bytes_to_verify(folder: Path) -> int:
    """Bytes of tensors that `verify` will look at."""
    return sum(entry.payload for entry in load_manifest(folder).files)


# --- against the manifest ------------------------------------------------------------------------------------------


def _strangers(folder: Path, manifest: Manifest) -> Iterator[str]:
    known = {name for entry in manifest.files for name in entry.names}
    known |= {entry.name for entry in manifest.companions} | {MANIFEST_NAME}
    folders = {Path(name).parent.as_posix() for name in known}
    for path in sorted(path for inner in folders for path in (folder / inner).glob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in known and name not in folders:
            yield f"{name} is not part of the result"


def _check_links(folder: Path, entry: ManifestFile) -> Iterator[Problem]:
    """Each further name of a file is the file itself, or a copy of it where the file system has no links."""
    for link in entry.links:
        path = folder / link
        if not path.is_file():
            yield Problem(kind="lost-file", file=link, message=f"is gone: a link to {entry.name}")
        elif not path.samefile(folder / entry.name) and not filecmp.cmp(path, folder / entry.name, shallow=False):
            yield Problem(kind="damaged-file", file=link, message=f"differs from {entry.name}")


def _check_ranks(manifest: Manifest) -> Iterator[Problem]:
    """Each rank that the manifest says is here has a file."""
    readers = {rank for entry in manifest.files for rank in entry.ranks}
    if readers != set(manifest.ranks):
        odd = min(readers ^ set(manifest.ranks))
        message = f"rank {odd} {'has a file but is not among its ranks' if odd in readers else 'has no file'}"
        yield Problem(kind="wrong-manifest", file=MANIFEST_NAME, message=message)


def _check_companions(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    for entry in manifest.companions:
        path = folder / entry.name
        if not path.is_file():
            yield Problem(kind="lost-file", file=entry.name, message="is gone")
        elif path.stat().st_size != entry.nbytes or digest_of(path.read_bytes()) != entry.digest:
            yield Problem(kind="damaged-file", file=entry.name, message="differs from what was written")


def _check_file(folder: Path, entry: ManifestFile, manifest: Manifest) -> Iterator[Problem]:
    """Presence, size and header of a rank's file."""

    def problem(kind: str, message: str) -> Problem:
        return Problem(kind=kind, file=entry.name, message=message)

    try:
        file = LocalFile(folder / entry.name, entry.name)
    except ReadFailed:
        yield problem("lost-file", f"is gone or unreadable: the shards of {_ranks(entry)}")
        return
    try:
        if file.nbytes != entry.nbytes:
            swapped = _swapped(_raw_header_digest(file), entry, manifest)
            if swapped:
                yield problem("wrong-header", swapped)
                return
            yield problem("wrong-size", f"has {file.nbytes:,} bytes, {entry.nbytes:,} were written")
            return
        header = read_header(file, entry.name)
        digest = digest_of(file.read(0, header.data_start))
        if digest != entry.header_digest:
            yield problem(
                "wrong-header", _swapped(digest, entry, manifest) or "its header differs from what was written"
            )
        elif _sizes(entry, header) != {name: info.nbytes for name, info in header.tensors.items()}:
            yield problem("wrong-manifest", "the manifest has other tensors or sizes than its header")
    except HeaderError as error:
        yield problem("wrong-header", str(error))
    finally:
        file.close()


def _ranks(entry: ManifestFile) -> str:
    return f"rank {entry.ranks[0]}" if len(entry.ranks) == 1 else "all ranks"


def _sizes(entry: ManifestFile, header: Header) -> dict[str, int]:
    """Bytes of each tensor as the manifest has them: the sum of its pieces, or its header's."""
    pieces = {name: sum(count * nbytes for count, nbytes in runs) for name, runs in entry.pieces.items()}
    whole = {name: header.tensors[name].nbytes for name in entry.tensors if name in header.tensors}
    return dict.fromkeys(entry.tensors, -1) | whole | pieces


def _raw_header_digest(file: LocalFile) -> str:
    """The digest of what the file itself says is its header."""
    start = min(file.nbytes, LENGTH_BYTES + int.from_bytes(file.read(0, min(file.nbytes, LENGTH_BYTES)), "little"))
    return digest_of(file.read(0, min(start, LENGTH_BYTES + MAX_HEADER_BYTES)))


def _swapped(header_digest: str, entry: ManifestFile, manifest: Manifest) -> str | None:
    for other in manifest.files:
        if other.name != entry.name and other.header_digest == header_digest:
            return f"holds the shards of {_ranks(other)} ({other.name}), not of {_ranks(entry)}: swapped?"
    return None


def _check_tensors(
    folder: Path, entries: list[ManifestFile], workers: int, on_progress: Callable[[int], None]
) -> list[Problem]:
    """Hash every tensor of the files that have a sound header."""
    problems: list[Problem] = []
    for entry in entries:
        file = LocalFile(folder / entry.name, entry.name)
        try:
            header = read_header(file, entry.name)

            def damage(
                item: tuple[str, str], file: LocalFile = file, header: Header = header, entry: ManifestFile = entry
            ) -> Problem | None:
                name, digest = item
                found = hash_tensor(file, header, name, entry.pieces.get(name), on_progress, once=True)
                if found == digest:
                    return None
                message = "its bytes differ from what was written"
                return Problem(kind="damaged-tensor", file=entry.name, tensor=name, message=message)

            with ThreadPoolExecutor(workers) as pool:
                found = [problem for problem in pool.map(damage, entry.tensors.items()) if problem]
        finally:
            file.close()
        problems += _swapped_content(found, entry) or found
    return problems


def _swapped_content(found: list[Problem], entry: ManifestFile) -> list[Problem]:
    """Two ranks' files may have equal headers: then most tensors that are not replicated differ at once."""
    if len(found) * 2 < len(entry.tensors) or len(found) < 2:
        return []
    message = f"{len(found):,} of {len(entry.tensors):,} tensors differ, {found[0].tensor} first: another rank's file?"
    return [Problem(kind="wrong-content", file=entry.name, message=message)]


# --- against the source --------------------------------------------------------------------------------------------


class _CompareSink:
    """Compares pieces with what stands in the result's files. See `copying.Sink`."""

    def __init__(self, files: list[LocalFile | None]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self.mismatches: dict[int, list[int]] = {}

    def put(self, file: int, offset: int, data: memoryview) -> None:
        """Note the first byte that differs, if any."""
        there = self._files[file]
        if there is None:
            return
        found = bytearray(len(data))
        try:
            there.readinto(offset, memoryview(found), once=True)
        except ReadFailed:
            found = bytearray()
        if found == data:
            return
        first = next((i for i, (a, b) in enumerate(zip(found, data, strict=False)) if a != b), len(found))
        with self._lock:
            kept = self.mismatches.setdefault(file, [])
            if len(kept) < _MISMATCHES_KEPT:
                kept.append(offset + first)


def _compare(
    folder: Path,
    manifest: Manifest,
    source: tuple[Checkpoint, Inventory],
    workers: int,
    on_progress: Callable[[int], None],
) -> tuple[list[Problem], dict[str, int]]:
    """Derive each output byte from the source again and compare; account for each source tensor."""
    checkpoint, inventory = source
    plan = check_plan(load_plan(folder / PLAN_NAME), checkpoint, inventory)
    job = prepare(checkpoint, inventory, plan, manifest.ranks)
    recipe = job.recipe
    problems = [*_check_shares(job, manifest)]
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
    sink = _CompareSink(files)
    try:
        copied = copy(recipe, checkpoint.source, sink, workers, on_progress, allow_inexact=True)
    finally:
        for opened in files:
            if opened is not None:
                opened.close()
    found = [(number, offset) for number, offsets in sorted(sink.mismatches.items()) for offset in sorted(offsets)]
    problems += [_locate(recipe, number, offset) for number, offset in found]
    problems += _check_linked(folder, recipe, manifest, checkpoint, copied.digests)
    accounts, unaccounted = _account(recipe, inventory, manifest)
    return problems + unaccounted, accounts


def _check_shares(job: Job, manifest: Manifest) -> Iterator[Problem]:
    """Whether the manifest shares the files out to the ranks as the plan does."""
    written = {entry.name: (entry.ranks, entry.links) for entry in manifest.files}
    planned = {file.name: (file.ranks, file.links) for file in job.recipe.files}
    if (written, manifest.world, manifest.identity) != (planned, job.world, job.identity):
        message = "shares files out in another way than the plan does"
        yield Problem(kind="wrong-manifest", file=MANIFEST_NAME, message=message)


def _check_linked(
    folder: Path, recipe: Recipe, manifest: Manifest, checkpoint: Checkpoint, digests: dict[tuple[int, str], str]
) -> Iterator[Problem]:
    """A link to the checkpoint's own file differs from it in no case: it is held against what was written."""
    written = {entry.name: entry.tensors for entry in manifest.files}
    for number, file in enumerate(recipe.files):
        path, original = folder / file.name, checkpoint.source.root / file.source
        if not file.source or not path.is_file() or not path.samefile(original):
            continue
        for name in file.tensors:
            if written.get(file.name, {}).get(name) != digests[number, name]:
                message = f"its bytes differ from what was written; it is a link to {original}"
                yield Problem(kind="damaged-tensor", file=file.name, tensor=name, message=message)


def _locate(recipe: Recipe, number: int, offset: int) -> Problem:
    file = recipe.files[number]
    position = offset - len(file.header)
    name = next(name for name, info in file.tensors.items() if info.start <= position < info.stop)
    message = f"byte {offset:,} differs from the source"
    return Problem(kind="differs-from-source", file=file.name, tensor=name, message=message)


def _account(recipe: Recipe, inventory: Inventory, manifest: Manifest) -> tuple[dict[str, int], list[Problem]]:
    """What became of each source tensor: on every rank, split exactly once, on one rank, or left out."""
    complete = len(manifest.ranks) == manifest.world
    readers = [file.ranks for file in recipe.files]
    accounts: Counter[str] = Counter()
    lost: list[str] = []
    for step in recipe.steps:
        is_expert = inventory.names[step.source.name].expert >= 0
        fate = _fate(step, is_expert, readers, set(manifest.ranks), complete)
        if fate is None:
            lost.append(step.source.name)
        else:
            accounts[fate] += 1
    decoded = {step.scale.name for step in recipe.steps if step.scale is not None}
    moved = {step.source.name for step in recipe.steps}
    accounts["decoded with their weights"] = len(decoded)
    accounts["left out"] = len(recipe.left_out.keys() - decoded)
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


def _fate(step: Step, is_expert: bool, readers: list[tuple[int, ...]], ranks: set[int], complete: bool) -> str | None:
    """How the landings of a step cover its source, or None where they do not add up.

    `readers` has the ranks that read each file.
    """
    shape = tuple(size * step.repeat for size in step.source.shape)
    whole = whole_rectangle(step.source.dtype, shape)
    fates = set()
    for landing in step.landings:
        areas = {cut.rectangle: files for cut, files in landing.spread if cut.rectangle.nbytes}
        holders = {rank for files in areas.values() for number in files for rank in readers[number]}
        if areas.keys() == {whole}:
            fates.add(_WHOLE if holders == ranks else _ONE_RANK if is_expert and len(holders) == 1 else None)
            continue
        cuts = sorted(areas)
        disjoint = all(a.row_stop <= b.row_start or a.stop <= b.start for a, b in pairwise(cuts))
        covered = not complete or sum(cut.nbytes for cut in cuts) == whole.nbytes
        even = len({len(files) for files in areas.values()}) == 1
        fates.add(_SPLIT if disjoint and covered and even else None)
    return fates.pop() if len(fates) == 1 else None
