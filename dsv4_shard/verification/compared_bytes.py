"""Rank files ↔ recipe: the recipe runs into a sink that compares, and whole files are hashed on the way."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dsv4_shard.errors import ReadFailed
from dsv4_shard.sharding.copy import Listeners, copy, pays_processes
from dsv4_shard.sharding.file_hasher import FileHasher, HashedFile
from dsv4_shard.sharding.recipe import Recipe
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.local import LocalFile
from dsv4_shard.verification.documents import Problem

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


class ComparedBytes(NamedTuple):
    """What a comparison of bytes found.

    Attributes:
        problems: Headers and bytes that differ.
        digests: (file number, tensor name) → digest of the bytes that the source gives.
        sha256: File number → SHA-256, of the sound files that equal their source.
    """

    problems: list[Problem]
    digests: dict[tuple[int, str], str]
    sha256: dict[int, str]


def compare_bytes(
    folder: Path,
    recipe: Recipe,
    source: Source,
    sound: Collection[str],
    workers: int,
    on_progress: Callable[[int], None],
) -> ComparedBytes:
    """Run `recipe` over `source` and compare what it makes with the files in `folder`.

    `sound` has the names of the files that are hashed whole; the others are as in `against_source.compare`.
    """
    with _opened(folder, recipe) as files:
        problems = list(_check_headers(recipe, files))
        hashed = {
            number: HashedFile(folder / file.name, file.header, file.nbytes)
            for number, file in enumerate(recipe.files)
            if file.name in sound and files[number] is not None
        }
        with FileHasher(hashed, workers) as hasher:
            told = Listeners(on_progress, hasher.put, _Dropper(files, hasher).complete)
            copied = copy(
                recipe, source, _CompareSink(files), workers, told, allow_inexact=True,
                processes=pays_processes(recipe, source, workers),
            )  # fmt: skip
            sha256 = hasher.digests()
    found = [(number, offset) for number, offsets in copied.differing.items() for offset in offsets]
    problems += [_locate(recipe, number, offset) for number, offset in found]
    alike = {number: digest for number, digest in sha256.items() if number not in copied.differing}
    return ComparedBytes(problems, copied.digests, alike)


@contextmanager
def _opened(folder: Path, recipe: Recipe) -> Iterator[list[LocalFile | None]]:
    """Open the recipe's files in `folder`, None for one that cannot be read, and close them at the end."""
    files: list[LocalFile | None] = []
    try:
        for expected in recipe.files:
            try:
                files.append(LocalFile(folder / expected.name, expected.name))
            except ReadFailed:
                files.append(None)
        yield files
    finally:
        for opened in files:
            if opened is not None:
                opened.close()


def _check_headers(recipe: Recipe, files: list[LocalFile | None]) -> Iterator[Problem]:
    """Yield a problem for each file with another header than the source gives."""
    for expected, file in zip(recipe.files, files, strict=True):
        if file is not None and file.read(0, min(len(expected.header), file.nbytes)) != expected.header:
            message = "its header is not the one that the source gives"
            yield Problem(kind="wrong-header", file=expected.name, message=message)


def _locate(recipe: Recipe, number: int, offset: int) -> Problem:
    """The problem at byte `offset` of file `number`: names the tensor that contains it."""
    file = recipe.files[number]
    position = offset - len(file.header)
    name = next(name for name, info in file.tensors.items() if info.start <= position < info.stop)
    message = f"byte {offset:,} differs from the source"
    return Problem(kind="differs-from-source", file=file.name, tensor=name, message=message)
