"""The files of a folder that a signature is of, and their digests: each file is read once, whatever its names."""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dsv4_shard.errors import ReadFailed
from dsv4_shard.signing.bundle import Resource, Serialization
from dsv4_shard.sources.local import file_sha256

if TYPE_CHECKING:
    from model_signing.manifest import Manifest

GIT_PATHS = (".git", ".gitattributes", ".github", ".gitignore")
"""Paths that model_signing does not sign by default."""

SHA256_OF_FILES = Serialization(method="files", hash_type="sha256", allow_symlinks=False)
"""The default of model_signing: the SHA-256 of each file. This package signs the same."""

Inode = tuple[int, int]


def names_in(folder: Path, ignored: Collection[str]) -> Iterator[str]:
    """Yield each file of a folder and its folders, without `ignored` paths and what is below them.

    Links to files are files. A link to a folder is yielded too: no file is read through it.
    """
    for root, folders, files in os.walk(folder):
        within = Path(root).relative_to(folder)
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        folders[:] = [name for name in folders if name not in links and not _is_in((within / name).as_posix(), ignored)]
        for name in sorted((*files, *links)):
            path = (within / name).as_posix()
            if not _is_in(path, ignored):
                yield path


def _is_in(path: str, ignored: Collection[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(one) for one in ignored)


def by_inode(folder: Path, names: Iterable[str]) -> dict[Inode, list[str]]:
    """Group the names that lead to one file. Raises ReadFailed if one leads nowhere."""
    found: dict[Inode, list[str]] = {}
    for name in names:
        try:
            status = os.stat(folder / name)
        except OSError as error:
            raise ReadFailed(f"{folder / name}: {error.strerror}") from error
        found.setdefault((status.st_dev, status.st_ino), []).append(name)
    return found


def nbytes_of(folder: Path, names: Iterable[str]) -> int:
    """Return the bytes of files, each counted once for all its names. Raises ReadFailed."""
    return sum(os.stat(folder / group[0]).st_size for group in by_inode(folder, names).values())


def sha256_of(folder: Path, names: Iterable[str], workers: int, on_progress: Callable[[int], None]) -> dict[str, str]:
    """Return name -> SHA-256 of files in a folder, the largest first, several at a time.

    Raises ReadFailed for anything but a readable regular file.
    """
    groups = sorted(by_inode(folder, names).values(), key=lambda group: -os.stat(folder / group[0]).st_size)
    stopped = threading.Event()

    def advance(nbytes: int) -> None:
        if stopped.is_set():
            raise ReadFailed("stopped: another file could not be read")
        on_progress(nbytes)

    with ThreadPoolExecutor(workers, thread_name_prefix="sha256") as pool:
        try:
            found = list(pool.map(lambda group: file_sha256(folder / group[0], group[0], advance), groups))
        except BaseException:
            stopped.set()
            raise
    return {name: sha256 for group, sha256 in zip(groups, found, strict=True) for name in group}


def resources_of(
    folder: Path, names: Iterable[str], how: Serialization, workers: int, on_progress: Callable[[int], None]
) -> list[Resource]:
    """Return the digests of files as a signature has them, made as `how` says. Raises ReadFailed.

    SHA-256 of whole files are computed here. Parts of files and other algorithms are left to the library, which tells
    no progress before its end.
    """
    if how.is_of_whole_files:
        return as_resources(sha256_of(folder, names, workers, on_progress))
    from model_signing import hashing

    config = hashing.Config()
    if how.method == "files":
        config.use_file_serialization(hashing_algorithm=how.hash_type, max_workers=workers)
    else:
        size = how.shard_size or 0
        config.use_shard_serialization(hashing_algorithm=how.hash_type, shard_size=size, max_workers=workers)
    config.set_allow_symlinks(True)
    twins = {group[0]: group for group in by_inode(folder, names).values()}
    manifest = config.hash(folder, files_to_hash=[folder / name for name in twins])
    found = []
    for one in manifest.resource_descriptors():
        read = Resource(name=one.identifier, algorithm=one.digest.algorithm, digest=one.digest.digest_hex)
        name = how.file_of(read)
        part = read.name.removeprefix(name)
        found += [read.model_copy(update={"name": twin + part}) for twin in twins[name]]
    on_progress(nbytes_of(folder, twins))
    return found


def as_resources(sha256: Mapping[str, str]) -> list[Resource]:
    """Return name -> SHA-256 as a signature has them."""
    return [Resource(name=name, algorithm="sha256", digest=sha256[name]) for name in sorted(sha256)]


def as_manifest(name: str, resources: Iterable[Resource], how: Serialization) -> "Manifest":
    """Return what the library signs and verifies: files and digests, and how they were made."""
    from model_signing._hashing.hashing import Digest
    from model_signing.manifest import Manifest, SerializationType

    serialization = SerializationType.from_args(how.model_dump(exclude_none=True))
    items = [serialization.new_item(one.name, Digest(one.algorithm, bytes.fromhex(one.digest))) for one in resources]
    return Manifest(name, items, serialization)
