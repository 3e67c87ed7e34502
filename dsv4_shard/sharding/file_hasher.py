"""SHA-256 of whole files while other threads write them, or read them.

SHA-256 takes bytes in order, but pieces arrive in the order of the source. Bytes that arrive in order are hashed from
memory. The others are read back, from the page cache as a rule, once the file has all bytes before them.
"""

import hashlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dsv4_shard.sources.local import LocalFile

_READ_BYTES = 1 << 20
"""Bytes to read back at a time: they stay in the CPU's cache until they are hashed."""


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file to hash: its path, its first bytes, which are known to be there, and its size in bytes."""

    path: Path
    header: bytes
    nbytes: int


class FileHasher:
    """Computes the SHA-256 of several files, each up to the last byte that is known to be there.

    Other files than its own are ignored. Use it as a context manager: leaving the context stops all work.
    """

    def __init__(self, files: Mapping[int, HashedFile], workers: int) -> None:
        """Start with the headers of the files, by their numbers. Headers are not read back.

        `workers` threads read back; with 1, the calling thread does.
        """
        self._files = {number: _Progress(file) for number, file in files.items()}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sha256") if workers > 1 else None
        self._is_stopped = False
        self._error: BaseException | None = None

    def __enter__(self) -> "FileHasher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopped = True
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def put(self, file: int, offset: int, data: memoryview) -> None:
        """Hash `data`, which the file has at byte `offset`, if all bytes before it are hashed. Any thread may call."""
        progress = self._files.get(file)
        if progress is not None and progress.claim(offset):
            progress.running.update(data)
            if progress.release(offset + len(data)):
                self._start_reading_back(progress)

    def complete(self, file: int, start: int, stop: int) -> None:
        """Record that the file has the bytes `[start, stop)`. Any thread may call this.

        Raises the error of an earlier attempt to read back.
        """
        if self._error is not None:
            raise self._error
        progress = self._files.get(file)
        if progress is not None and start < stop and progress.extend(start, stop):
            self._start_reading_back(progress)

    def hashed(self, file: int) -> int:
        """Return the number of bytes at the beginning of the file that are not read back any more; 0 of other files."""
        progress = self._files.get(file)
        return 0 if progress is None else progress.position

    def digests(self) -> dict[int, str]:
        """Return file number -> SHA-256 in hexadecimal, after all bytes are there. Waits for the hashing.

        Raises ReadFailed if a file could not be read back.
        """
        if self._pool is not None:
            self._pool.shutdown()
        if self._error is not None:
            raise self._error
        assert all(progress.is_done for progress in self._files.values()), "all bytes are there"
        return {number: progress.running.hexdigest() for number, progress in self._files.items()}

    def _start_reading_back(self, progress: "_Progress") -> None:
        if self._pool is None:
            self._read_back(progress)
        else:
            self._pool.submit(self._read_back, progress)

    def _read_back(self, progress: "_Progress") -> None:
        """Read the file from its position on, and hash it. The caller has claimed the file."""
        try:
            file = LocalFile(progress.file.path, progress.file.path.name)
            try:
                self._read_on(file, progress)
            finally:
                file.close()
        except BaseException as error:
            self._error = self._error or error

    def _read_on(self, file: LocalFile, progress: "_Progress") -> None:
        """Hash all that is there, also what comes meanwhile; then release the file."""
        buffer = memoryview(bytearray(_READ_BYTES))
        while progress.release(progress.position) and not self._is_stopped:
            data = buffer[: min(_READ_BYTES, progress.there - progress.position)]
            file.readinto(progress.position, data, once=True)
            progress.running.update(data)
            progress.position += len(data)


class _Progress:
    """How far a file is hashed. One thread at a time claims it.

    Attributes:
        running: Its SHA-256 so far.
        position: The number of bytes hashed.
        there: The file has all bytes before this one.
    """

    def __init__(self, file: HashedFile) -> None:
        self.file = file
        self.running = hashlib.sha256(file.header)
        self.position = self.there = len(file.header)
        self._islands: dict[int, int] = {}
        """Begin and end of what is there beyond `there`."""
        self._is_claimed = False
        self._lock = threading.Lock()

    @property
    def is_done(self) -> bool:
        return self.position == self.file.nbytes

    def claim(self, offset: int) -> bool:
        """Claim the file to hash the bytes at `offset`, if they are the next ones."""
        with self._lock:
            if self._is_claimed or self.position != offset:
                return False
            self._is_claimed = True
            return True

    def release(self, position: int) -> bool:
        """Set the position; return whether more bytes are there: then the file stays claimed to read them back."""
        with self._lock:
            self.position = position
            self._reach(position)
            self._is_claimed = self.position < self.there
            return self._is_claimed

    def extend(self, start: int, stop: int) -> bool:
        """Record that the file has the bytes `[start, stop)`.

        Return True if the caller must read back and hash them; the file is then claimed for it.
        """
        with self._lock:
            if start > self.there:
                self._islands[start] = stop
                return False
            self._reach(stop)
            if self._is_claimed or self.position >= self.there:
                return False
            self._is_claimed = True
            return True

    def _reach(self, stop: int) -> None:
        """Note that all bytes before `stop` are there, and before the ends of the islands that it meets."""
        self.there = max(self.there, stop)
        while (end := self._islands.pop(self.there, 0)) > self.there:
            self.there = end
