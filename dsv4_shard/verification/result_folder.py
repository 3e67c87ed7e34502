"""Rank files ↔ manifest: whether a result folder holds the bytes that were written.

Every file, size, header and digest is compared with the manifest. `against_source` compares the files with the source.
"""

import filecmp
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.errors import HeaderError, ReadFailed
from dsv4_shard.limits import HEADER
from dsv4_shard.sharding.manifest import PLAN_NAME, Manifest, ManifestFile, load_manifest
from dsv4_shard.sources.hub_cache import unchecked_copies
from dsv4_shard.sources.local import LocalFile
from dsv4_shard.storage import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    default_workers,
    digest_of,
    digests_of_file,
    folders_of,
)
from dsv4_shard.tensors.header import LENGTH_BYTES, Header, read_header
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.text.units import counted, size
from dsv4_shard.verification.against_source import compare
from dsv4_shard.verification.contents import check_contents, check_sample
from dsv4_shard.verification.documents import Problem, Verification


def verify(
    folder: Path,
    source: tuple[Checkpoint, Inventory] | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
    ranks: Collection[int] | None = None,
    sample: Fraction | None = None,
    signature: str | None = None,
) -> Verification:
    """Verify the result in `folder`, and compare it with its source if that is given.

    Args:
        folder: The result folder.
        source: The checkpoint and its inventory.
        workers: Number of workers (default: see `default_workers`).
        on_progress: Receives the bytes verified since its last call.
        ranks: Verify only the files of these ranks, while others may be joining. A shared file belongs to its first
            rank.
        sample: Read about this part of each file's tensors, chosen at random. Only without a source.
        signature: The path in the folder of a signature that was verified, empty if it is elsewhere; None without one.

    Raises:
        NotAResult: The folder has no sound manifest.
        ForeignPlan: The result was made from another checkpoint.
    """
    manifest = load_manifest(folder)
    workers = workers or default_workers()
    files = _files_of(manifest, ranks)
    problems, sound = _check_without_tensors(folder, manifest, files)
    is_planned = not any(problem.file == PLAN_NAME for problem in problems)
    checked = _check_tensors(folder, manifest, sound, source, sample, workers, on_progress, is_planned=is_planned)
    strangers = _strangers(folder, manifest, signature) if ranks is None else ()
    held = tuple(rank for rank in manifest.ranks if ranks is None or rank in ranks)
    return Verification(
        folder=str(folder),
        layout=manifest.layout,
        ranks=held,
        world=manifest.world,
        missing=missing_of(manifest.world, held),
        files=len(files),
        tensors=sum(len(entry.tensors) for entry in files),
        bytes=sum(entry.nbytes for entry in files),
        sampled_bytes=checked.sampled,
        against=source[0].source.label if source else None,
        accounts=checked.accounts or {},
        left_out=dict(Counter(manifest.left_out.values())),
        problems=(*problems, *checked.problems),
        notes=(*strangers, *checked.notes),
        unknown=tuple(_unknown(manifest, checked.sampled, signature is not None)) if checked.accounts is None else (),
    )


class _Checked(NamedTuple):
    """What the tensors show: problems and notes; bytes of a sample; and the accounts of a comparison with the source.

    `sampled` and `accounts` are None where there was no sample, or no comparison.
    """

    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()
    sampled: int | None = None
    accounts: dict[str, int] | None = None


def _check_tensors(
    folder: Path,
    manifest: Manifest,
    sound: list[ManifestFile],
    source: tuple[Checkpoint, Inventory] | None,
    sample: Fraction | None,
    workers: int,
    on_progress: Callable[[int], None],
    *,
    is_planned: bool,
) -> _Checked:
    """Compare the tensors of `sound` files with the source, or with the digests of the manifest, all or a sample.

    `is_planned`: the plan is the one that was written, so that the source can be compared by it.
    """
    if source is None:
        if sample is None:
            return _Checked(check_contents(folder, sound, workers, on_progress))
        problems, nbytes = check_sample(folder, sound, sample, workers, on_progress)
        return _Checked(problems, sampled=nbytes)
    if not is_planned:
        return _Checked(notes=("the source was not compared: plan.json, which says how, is not what was written",))
    compared = compare(folder, manifest, source, {entry.name for entry in sound}, workers, on_progress)
    return _Checked(compared.problems, [*compared.notes, *_unchecked(source[0])], accounts=compared.accounts)


def _unchecked(checkpoint: Checkpoint) -> Iterator[str]:
    """A note if files of the checkpoint came from the Hub's cache, where nothing has checked them."""
    unchecked = unchecked_copies(checkpoint.source, (file.name for file in checkpoint.files))
    if unchecked:
        yield (
            f"{counted(len(unchecked), 'file')} of the checkpoint came from the Hub cache, unchecked: "
            "`hf cache verify REPO` compares them with the repository's SHA-256"
        )


def missing_of(world: int, ranks: Iterable[int]) -> tuple[int, ...]:
    """The ranks of `world` that are not among `ranks`."""
    return tuple(sorted(set(range(world)) - set(ranks)))


def quick_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Yield the problems that are found without reading tensors: presence, sizes, headers, small files and links."""
    yield from _check_without_tensors(folder, manifest, manifest.files)[0]


def _check_without_tensors(
    folder: Path, manifest: Manifest, files: Iterable[ManifestFile]
) -> tuple[list[Problem], list[ManifestFile]]:
    """The problems of small files and of `files` that show without their tensors; and the files with sound headers."""
    problems = [*_check_companions(folder, manifest), *_check_ranks(manifest)]
    sound: list[ManifestFile] = []
    for entry in files:
        found = list(_check_file(folder, entry, manifest))
        problems += found or _check_links(folder, entry)
        if not found:
            sound.append(entry)
    return problems, sound


def bytes_to_verify(folder: Path, ranks: Collection[int] | None = None) -> int:
    """Bytes of tensors that `verify` will read."""
    return sum(entry.payload for entry in _files_of(load_manifest(folder), ranks))


def _unknown(manifest: Manifest, sampled: int | None, is_signed: bool) -> Iterator[str]:
    """What a verification without the source cannot know."""
    if sampled is not None:
        payload = sum(entry.payload for entry in manifest.files)
        yield f"{size(payload - sampled)} of tensors were not read"
    yield f"whether these are the bytes of {short_name(manifest.source.label)}: --against compares them"
    if not is_signed:
        yield "whether somebody changed files and manifest together: --against or --signature finds that too"


def _files_of(manifest: Manifest, ranks: Collection[int] | None) -> list[ManifestFile]:
    """The manifest's files whose first rank is in `ranks`; all of them for None."""
    return [entry for entry in manifest.files if ranks is None or entry.ranks[0] in ranks]


def _strangers(folder: Path, manifest: Manifest, signature: str | None) -> Iterator[str]:
    """A note for each file in the result's folders that is not in the manifest, nor the verified `signature`."""
    known = {name for entry in manifest.files for name in entry.names}
    known |= {entry.name for entry in manifest.companions} | {MANIFEST_NAME}
    folders = {".", *folders_of(known)}
    for path in sorted(path for inner in folders for path in (folder / inner).glob("*")):
        name = path.relative_to(folder).as_posix()
        if name == SIGNATURE_NAME != signature:
            yield f"{name} is a signature that was not verified: --signature"
        elif name not in known and name not in folders and name != signature:
            yield f"{name} is not part of the result"


def _check_links(folder: Path, entry: ManifestFile) -> Iterator[Problem]:
    """Problems of a file's other names: each must be a link to the file, or a copy if the file system has no links."""
    for link in entry.links:
        path = folder / link
        if not path.is_file():
            yield Problem(kind="lost-file", file=link, message=f"is gone: a link to {entry.name}")
        elif not path.samefile(folder / entry.name) and not filecmp.cmp(path, folder / entry.name, shallow=False):
            yield Problem(kind="damaged-file", file=link, message=f"differs from {entry.name}")


def _check_ranks(manifest: Manifest) -> Iterator[Problem]:
    """A problem if a rank of the manifest has no file, or a file belongs to a rank that is not in the manifest."""
    readers = {rank for entry in manifest.files for rank in entry.ranks}
    if readers != set(manifest.ranks):
        odd = min(readers ^ set(manifest.ranks))
        message = f"rank {odd} {'has a file but is not among its ranks' if odd in readers else 'has no file'}"
        yield Problem(kind="wrong-manifest", file=MANIFEST_NAME, message=message)


def _check_companions(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Problems of the small files: presence, size and digest."""
    for entry in manifest.companions:
        path = folder / entry.name
        try:
            digest, sha256 = digests_of_file(path) if path.stat().st_size == entry.nbytes else ("", "")
            if digest != entry.digest:
                message = "differs from what was written"
            elif entry.sha256 not in (None, sha256):
                message = f"{MANIFEST_NAME} names another SHA-256 than that of its bytes"
            else:
                continue
        except FileNotFoundError:
            yield Problem(kind="lost-file", file=entry.name, message="is gone")
            continue
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
        except ReadFailed as error:
            message = str(error).removeprefix(f"{path}: ")
        yield Problem(kind="damaged-file", file=entry.name, message=message)


def _check_file(folder: Path, entry: ManifestFile, manifest: Manifest) -> Iterator[Problem]:
    """Problems of a rank file's presence, size and header."""
    try:
        file = LocalFile(folder / entry.name, entry.name)
    except ReadFailed:
        message = f"is gone or unreadable: the shards of {_ranks(entry)}"
        yield Problem(kind="lost-file", file=entry.name, message=message)
        return
    try:
        found = _problem_of(file, entry, manifest)
    except HeaderError as error:
        found = "wrong-header", str(error)
    finally:
        file.close()
    if found is not None:
        yield Problem(kind=found[0], file=entry.name, message=found[1])


def _problem_of(file: LocalFile, entry: ManifestFile, manifest: Manifest) -> tuple[str, str] | None:
    """Kind and message of what is wrong with the size or header of a file; None if nothing is.

    Raises:
        HeaderError: The header cannot be read.
    """
    if file.nbytes != entry.nbytes:
        swapped = _swapped(_raw_header_digest(file), entry, manifest)
        wrong_size = f"has {file.nbytes:,} bytes, {entry.nbytes:,} were written"
        return ("wrong-header", swapped) if swapped else ("wrong-size", wrong_size)
    header = read_header(file, entry.name)
    digest = digest_of(file.read(0, header.data_start))
    if digest != entry.header_digest:
        return "wrong-header", _swapped(digest, entry, manifest) or "its header differs from what was written"
    if _sizes(entry, header) != {name: info.nbytes for name, info in header.tensors.items()}:
        return "wrong-manifest", "the manifest has other tensors or sizes than its header"
    return None


def _ranks(entry: ManifestFile) -> str:
    return f"rank {entry.ranks[0]}" if len(entry.ranks) == 1 else "all ranks"


def _sizes(entry: ManifestFile, header: Header) -> dict[str, int]:
    """Tensor name -> bytes by the manifest: the sum of its pieces, or the size in the header."""
    pieces = {name: sum(count * nbytes for count, nbytes in runs) for name, runs in entry.pieces.items()}
    whole = {name: header.tensors[name].nbytes for name in entry.tensors if name in header.tensors}
    return dict.fromkeys(entry.tensors, -1) | whole | pieces


def _raw_header_digest(file: LocalFile) -> str:
    """Digest of the header, whose length is read from the file itself."""
    start = min(file.nbytes, LENGTH_BYTES + int.from_bytes(file.read(0, min(file.nbytes, LENGTH_BYTES)), "little"))
    return digest_of(file.read(0, min(start, LENGTH_BYTES + HEADER.nbytes)))


def _swapped(header_digest: str, entry: ManifestFile, manifest: Manifest) -> str | None:
    """A message if the header is that of another file in the manifest; else None."""
    for other in manifest.files:
        if other.name != entry.name and other.header_digest == header_digest:
            return f"holds the shards of {_ranks(other)} ({other.name}), not of {_ranks(entry)}: swapped?"
    return None
