"""One file of a result that is being written, and fsync of a folder."""

import os
from pathlib import Path

from dsv4_shard.errors import WriteFailed
from dsv4_shard.storage.linux_io import WRITE_BYTES, UncachedFile


class StagedFile:
    """A file that is being written. It owns the descriptor `fd`. Any thread may write."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        self._uncached = UncachedFile(fd)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at byte `offset`, with as many calls as needed. Raises WriteFailed with the offset."""
        done = 0
        while done < len(data):
            room = WRITE_BYTES - (offset + done) % WRITE_BYTES
            try:
                done += self._uncached.write(data[done : done + room], offset + done)
            except OSError as error:
                raise WriteFailed(f"{self.path}: write at byte {offset + done} failed: {error.strerror}") from error

    def flush(self, keep_from: int | None = None) -> None:
        """Wait until all earlier writes are on disk, as `UncachedFile.flush` does. Raises WriteFailed."""
        try:
            self._uncached.flush(keep_from)
        except OSError as error:
            raise WriteFailed(f"{self.path}: {error.strerror}") from error

    def fsync(self) -> None:
        """Make content and metadata durable, as `UncachedFile.fsync` does. Raises OSError."""
        self._uncached.fsync()

    def close(self) -> None:
        os.close(self.fd)


def fsync_folder(path: Path) -> None:
    """Make a folder's entries durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
