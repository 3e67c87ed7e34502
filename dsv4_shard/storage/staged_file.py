"""Bytes into the files of a result in the making."""

import os
from pathlib import Path

from dsv4_shard.errors import WriteFailed
from dsv4_shard.storage.linux_io import MAX_CALL_BYTES, UncachedFile


class StagedFile:
    """A file that is being written. Takes over the descriptor; any thread may write."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        self._uncached = UncachedFile(fd)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`, however little a call takes. Raises WriteFailed with the offset."""
        done = 0
        while done < len(data):
            try:
                done += self._uncached.write(data[done : done + MAX_CALL_BYTES], offset + done)
            except OSError as error:
                raise WriteFailed(f"{self.path}: write at byte {offset + done} failed: {error.strerror}") from error

    def flush(self) -> None:
        """Wait until all that was written is on disk. Raises WriteFailed; see `UncachedFile.flush`."""
        try:
            self._uncached.flush()
        except OSError as error:
            raise WriteFailed(f"{self.path}: {error.strerror}") from error

    def fsync(self) -> None:
        """As `flush`, and the file's size and place too. Raises OSError."""
        self._uncached.fsync()

    def close(self) -> None:
        os.close(self.fd)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
