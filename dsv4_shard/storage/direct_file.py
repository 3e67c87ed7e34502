"""Read a large file at the speed of its disk: past the page cache, except what the page cache holds."""

import errno
import mmap
import os
from pathlib import Path

from dsv4_shard.errors import ReadFailed
from dsv4_shard.storage.linux_io import is_cached
from dsv4_shard.storage.regular_file import open_regular

PAGE = mmap.PAGESIZE


class DirectFile:
    """An open file whose blocks are read with O_DIRECT, where the file system has it. Thread-safe.

    Direct reads take no memory of the page cache and half the CPU. Blocks that are in the page cache, because they were
    just written or another process reads them, are copied from there.
    """

    def __init__(self, path: Path, *, shared: bool) -> None:
        """Open `path`. With `shared`, all reads go through the page cache, for other processes that read it too.

        Raises ReadFailed if it is not a readable regular file.
        """
        self._path = path
        self._fd = open_regular(path)
        self.nbytes = os.fstat(self._fd).st_size
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # calls are long, and no two read the same bytes
        self._direct = None if shared else _open_direct(self._fd)
        self._map = None if self._direct is None or not self.nbytes else mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        self._address = 0 if self._map is None else _address_of(self._map)

    def read(self, start: int, stop: int, buffer: memoryview) -> int:
        """Read bytes `[start, stop)` into `buffer`, and return where in it they begin.

        `buffer` begins at a multiple of PAGE in memory and has room for all pages that `[start, stop)` touches. Raises
        ReadFailed with the offset.
        """
        first = start // PAGE * PAGE
        pages = buffer[: -(-(stop - first) // PAGE) * PAGE]
        direct = None if self._is_cached(first, stop) else self._direct
        if direct is not None and self._fill(direct, first, pages, stop - first):
            return start - first
        self._fill(self._fd, start, buffer[: stop - start], stop - start)
        return 0

    def close(self) -> None:
        os.close(self._fd)
        if self._direct is not None:
            os.close(self._direct)

    def _is_cached(self, start: int, stop: int) -> bool:
        return self._map is not None and is_cached(self._address + start, stop - start)

    def _fill(self, fd: int, start: int, buffer: memoryview, least: int) -> bool:
        """Read at least `least` bytes from `start` on into `buffer`; False if direct reads are refused here."""
        done = 0
        while done < least:
            try:
                count = os.preadv(fd, [buffer[done:]], start + done)
            except OSError as error:
                if fd == self._direct and error.errno == errno.EINVAL:
                    return False
                raise ReadFailed(f"{self._path}: read at byte {start + done} failed: {error.strerror}") from error
            if count == 0:
                raise ReadFailed(f"{self._path}: ends at byte {start + done}, {least - done} bytes too early")
            done += count
        return True


def _open_direct(fd: int) -> int | None:
    """Open the file of `fd` again, for direct reads; None where its file system has none."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None


def _address_of(mapped: mmap.mmap) -> int:
    """The address of a read-only map, which ctypes does not take."""
    import numpy as np

    return int(np.frombuffer(mapped, np.uint8).ctypes.data)
