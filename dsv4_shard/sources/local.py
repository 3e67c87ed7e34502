"""A local folder as a source."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from dsv4_shard.errors import ReadFailed
from dsv4_shard.limits import COMPANION, FOLDER, TREE
from dsv4_shard.sources.base import CHUNK_BYTES, OpenFile, SourcePart, Span, open_all
from dsv4_shard.sources.release_files import hidden
from dsv4_shard.storage import MAX_CALL_BYTES, UncachedFile, open_regular

LINKED_FOLDER = "a link to a folder"
"""Why `LocalSource.tree` does not look into it."""


class LocalFile:
    """An open file of a folder.

    `read` and `readinto` are thread-safe. They return exactly the requested bytes, or raise.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Open `path`. Raises ReadFailed if it is not a readable regular file."""
        self.name = name
        self._path = path
        self._fd = open_regular(path)
        self._stat = os.fstat(self._fd)
        # Calls read whole tensors or chunks. Kernel read-ahead would only read bytes that another thread reads too.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        self._uncached = UncachedFile(self._fd)
        self.nbytes = self._stat.st_size
        self.mtime_ns = self._stat.st_mtime_ns

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes `[start, stop)`. Raises ReadFailed with the offset."""
        buffer = bytearray(stop - start)
        self.readinto(start, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, start: int, buffer: memoryview, *, once: bool = False) -> None:
        """Fill `buffer` with the bytes from `start` on. Raises ReadFailed with the offset.

        With `once`, the bytes do not stay in the page cache.
        """
        done = 0
        while done < len(buffer):
            part = buffer[done : done + MAX_CALL_BYTES]
            try:
                count = self._uncached.read(part, start + done) if once else os.preadv(self._fd, [part], start + done)
            except OSError as error:
                raise ReadFailed(f"{self._path}: read at byte {start + done} failed: {error.strerror}") from error
            if count == 0:
                raise ReadFailed(f"{self._path}: ends at byte {start + done}, {len(buffer) - done} bytes too early")
            done += count

    def chunks(self, start: int, stop: int, *, once: bool = False) -> Iterator[memoryview]:
        """Yield bytes `[start, stop)` in order, CHUNK_BYTES at a time, in one buffer that each step fills again.

        `once` is that of `readinto`. Raises ReadFailed with the offset.
        """
        buffer = memoryview(bytearray(min(CHUNK_BYTES, stop - start)))
        for position in range(start, stop, CHUNK_BYTES):
            data = buffer[: min(CHUNK_BYTES, stop - position)]
            self.readinto(position, data, once=once)
            yield data

    def drop(self, stop: int) -> None:
        """Drop bytes `[0, stop)` from the page cache."""
        if stop:
            os.posix_fadvise(self._fd, 0, stop, os.POSIX_FADV_DONTNEED)

    def changed(self) -> str | None:
        """Describe how the file changed since it was opened (size, time, or replaced); None if it did not."""
        try:
            now = os.stat(self._path)
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        before = self._stat
        if now.st_size != before.st_size:
            return f"{self._path}: {before.st_size} bytes when opened, {now.st_size} now"
        if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            return f"{self._path}: replaced by another file"
        if now.st_mtime_ns != before.st_mtime_ns:
            return f"{self._path}: modified since it was opened"
        return None

    def close(self) -> None:
        os.close(self._fd)


def file_sha256(path: Path, name: str, on_progress: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a whole file in hexadecimal, read once and past the page cache.

    `name` stands for the file in messages. `on_progress` receives the bytes of each read; what it raises ends the
    reading. Raises ReadFailed, also if the file changes meanwhile.
    """
    file, running = LocalFile(path, name), hashlib.sha256()
    try:
        for data in file.chunks(0, file.nbytes, once=True):
            running.update(data)
            on_progress(len(data))
        if (change := file.changed()) is not None:
            raise ReadFailed(f"{change}: while it was read")
    finally:
        file.close()
    return running.hexdigest()


def _exists(path: Path) -> bool:
    """Return whether a link's target exists, or may exist where this user cannot look."""
    try:
        return path.exists()
    except OSError:
        return True


def _readable(folder: Path) -> list[Path]:
    """Return what a folder holds; nothing if it does not exist or belongs to another user."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _entries(folder: Path, limit: int | None) -> "list[os.DirEntry[str]] | None":
    """Return the entries of a folder by name; None if there are more than `limit`. Raises OSError."""
    with os.scandir(folder) as entries:
        found = list(islice(entries, None if limit is None else limit + 1))
    return None if limit is not None and len(found) > limit else sorted(found, key=lambda entry: entry.name)


def _size(entry: "os.DirEntry[str]", folder: str) -> int | str | None:
    """Return the bytes of an entry of `folder`, or why it is not looked at; None for a folder that is."""
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
        if is_file:
            return entry.stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not is_folder:
        return "not a regular file"
    if hidden(entry.name):
        return "hidden"
    if entry.is_symlink():
        return LINKED_FOLDER
    return f"deeper than {COMPANION.depth} folders" if folder.count("/") >= COMPANION.depth else None


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A folder as a source.

    `label` is how the user named it, `revision` the Hub commit if the path names one. `uri` and `sha256_listed` are set
    for a snapshot in the Hub cache that was named as a repository.
    """

    root: Path
    label: str
    revision: str | None = field(default=None)
    uri: str | None = None
    sha256_listed: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """Empty: the folder holds the checkpoint itself."""
        return ()

    @property
    def sha256_verified(self) -> Sequence[str]:
        """Empty: no SHA-256 is known for the files of a folder."""
        return ()

    @property
    def parts(self) -> Sequence[SourcePart]:
        """Empty: the files are the checkpoint's own."""
        return ()

    @property
    def witness(self) -> None:
        """None: nothing is checked across tensors."""
        return None

    def sizes(self) -> dict[str, int]:
        """Return name → bytes of every regular file in the folder (links followed). Raises ReadFailed."""
        try:
            with os.scandir(self.root) as entries:
                found = list(islice(entries, FOLDER.count + 1))
                if len(found) > FOLDER.count:
                    raise ReadFailed(
                        f"{self.root}: over {FOLDER.count:,} entries, too many to be read",
                        hint="Name the folder that holds the checkpoint and nothing else.",
                    )
                return {e.name: e.stat().st_size for e in sorted(found, key=lambda e: e.name) if Path(e).is_file()}
        except OSError as error:
            raise ReadFailed(f"{error.filename or self.root}: {error.strerror}") from error

    def tree(self) -> dict[str, int | str]:
        """Return name → bytes of every regular file, those in folders too: `encoding/a.py`. Raises ReadFailed.

        What is not looked at has the reason in place of bytes. Links to files are followed, links to folders are not.
        """
        found: dict[str, int | str] = {}
        folders, looked_at = [""], 0
        for folder in folders:
            try:
                entries = _entries(self.root / folder, TREE.count - looked_at if folder else None)
            except OSError as error:
                if not folder:
                    raise ReadFailed(f"{error.filename or self.root}: {error.strerror}") from error
                found[folder] = f"cannot be read: {error.strerror}"
                continue
            if entries is None:
                found[folder] = f"beyond {TREE.count:,} files in folders"
                continue
            looked_at += len(entries) if folder else 0
            for entry in entries:
                name, size = folder + entry.name, _size(entry, folder)
                if size is None:
                    folders.append(f"{name}/")
                else:
                    found[name] = size
        return found

    def dangling_links(self) -> list[str]:
        """Return the names of links whose target does not exist."""
        return sorted(path.name for path in self.root.iterdir() if path.is_symlink() and not _exists(path))

    def unfinished_downloads(self) -> list[str]:
        """Return the names of unfinished downloads, in the folder or in the Hub client's own folders."""
        folders = [self.root, self.root / ".cache" / "huggingface" / "download"]
        folders += (
            [self.root.resolve().parent.parent / "blobs"] if self.root.resolve().parent.name == "snapshots" else []
        )
        found = [path for folder in folders for path in _readable(folder)]
        return sorted(path.name for path in found if path.suffix in (".incomplete", ".part", ".aria2"))

    def links_outside(self, names: list[str]) -> list[str]:
        """Return those of `names` that are links out of the folder, except links to the blobs of a Hub cache."""
        root = self.root.resolve()
        homes = [root] + ([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
        targets = {name: (self.root / name).resolve() for name in names}
        return [name for name, target in targets.items() if not any(target.is_relative_to(home) for home in homes)]

    def shares_disk(self, name: str, out: Path) -> bool:
        """Return whether the file `name`, links followed, is on the file system of `out`. Raises ReadFailed."""
        try:
            return os.stat(self.root / name).st_dev == os.stat(os.path.dirname(os.path.abspath(out))).st_dev
        except OSError as error:
            raise ReadFailed(f"{error.filename}: {error.strerror}") from error

    def original(self, name: str) -> Path | None:
        """Return the path of the file `name`, to which a hard link can be made. Other sources may return None."""
        return self.root / name

    def modified_ns(self, names: Sequence[str]) -> Mapping[str, int]:
        """Return name → time of the last modification of the files `names` are read from, in ns since 1970.

        Empty if a commit identifies the content, whenever it was downloaded. Raises ReadFailed.
        """
        if self.revision is not None:
            return {}
        try:
            return {name: os.stat(self.root / name).st_mtime_ns for name in names}
        except OSError as error:
            raise ReadFailed(f"{error.filename}: {error.strerror}") from error

    @contextmanager
    def open(self, name: str) -> Iterator[LocalFile]:
        """Open the file `name`, and close it at the end of the block. Raises ReadFailed."""
        file = LocalFile(self.root / name, name)
        try:
            yield file
        finally:
            file.close()

    def reading(
        self, names: Sequence[str], spans: Iterable[list[Span]]
    ) -> AbstractContextManager[Mapping[str, OpenFile]]:
        """Open the files `names` inside the block, to be read at `spans` in about that order.

        Args:
            names: Files to open.
            spans: The bytes to read, one list per weight file, in the order of reading. See `sharding.recipe.spans`.
        """
        return open_all(self, names)
