"""Rank files in a folder: each is opened once, at its first read, and checked against change."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import xxhash

from dsv4_shard.errors import SourceChanged
from dsv4_shard.sources.local import LocalFile


class FileState(NamedTuple):
    """Name, size and modification time (ns) of a file when its header was checked."""

    name: str
    nbytes: int
    mtime_ns: int


class RankFiles:
    """Rank files by number. A file whose names are not all links to one file has several copies."""

    def __init__(self, folder: Path, copies: Sequence[tuple[FileState, ...]]) -> None:
        self._folder, self._copies = folder, copies
        self._open: dict[int, list[LocalFile]] = {}
        self._users = 0
        self._lock = threading.Lock()

    @property
    def stamp(self) -> int:
        """Changes if any file is modified or replaced."""
        seen = repr([tuple(seen) for copies in self._copies for seen in copies])
        return xxhash.xxh3_64_intdigest(seen.encode()) >> 1

    @property
    def modified_ns(self) -> dict[str, int]:
        """Name -> modification time of each file and copy, when its header was checked."""
        return {seen.name: seen.mtime_ns for copies in self._copies for seen in copies}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep files open within the block. They are closed when the last user leaves."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    for file in (file for files in self._open.values() for file in files):
                        file.close()
                    self._open.clear()

    def copies(self, number: int) -> list[LocalFile]:
        """File `number` and its copies, open.

        Raises ReadFailed, and SourceChanged if one differs from its `FileState`.
        """
        with self._lock:
            if number not in self._open:
                files = self._open[number] = []
                for seen in self._copies[number]:
                    file = LocalFile(self._folder / seen.name, seen.name)
                    files.append(file)
                    if (file.nbytes, file.mtime_ns) != (seen.nbytes, seen.mtime_ns):
                        raise SourceChanged(f"{self._folder / seen.name}: modified since its header was read")
            return self._open[number]

    def changed(self) -> str | None:
        """Describes the first change of a file since it was opened; None if there is none."""
        with self._lock:
            files = [file for files in self._open.values() for file in files]
        return next((line for file in files if (line := file.changed())), None)
