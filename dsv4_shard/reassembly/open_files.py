"""The files of ranks as they stand in a folder: each opened when it is first read, none after it was written to."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import xxhash

from dsv4_shard.errors import SourceChanged
from dsv4_shard.sources.local import LocalFile


class FileState(NamedTuple):
    """A file as it was when its header was checked."""

    name: str
    nbytes: int
    mtime_ns: int


class RankFiles:
    """Rank files by number. One that has several names and is not one file under all of them has copies."""

    def __init__(self, folder: Path, copies: Sequence[tuple[FileState, ...]]) -> None:
        self._folder, self._copies = folder, copies
        self._open: dict[int, list[LocalFile]] = {}
        self._users = 0
        self._lock = threading.Lock()

    @property
    def stamp(self) -> int:
        """A number that is another one where any of the files was written to or replaced."""
        seen = repr([tuple(seen) for copies in self._copies for seen in copies])
        return xxhash.xxh3_64_intdigest(seen.encode()) >> 1

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Files may be opened until all who use them have ended."""
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
        """File `number` and its copies, open. Raises ReadFailed, and SourceChanged where one is another than before."""
        with self._lock:
            if number not in self._open:
                files = self._open[number] = []
                for seen in self._copies[number]:
                    file = LocalFile(self._folder / seen.name, seen.name)
                    files.append(file)
                    if (file.nbytes, file.mtime_ns) != (seen.nbytes, seen.mtime_ns):
                        raise SourceChanged(f"{self._folder / seen.name}: written to since its header was read")
            return self._open[number]

    def changed(self) -> str | None:
        """What differs from when the files were opened, or None."""
        with self._lock:
            files = [file for files in self._open.values() for file in files]
        return next((line for file in files if (line := file.changed())), None)
