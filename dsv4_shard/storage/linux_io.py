"""Reads and writes that do not push out of the page cache what the machine serves from it.

RWF_DONTCACHE (Linux 6.14, where the file system has it) starts writing at once and drops pages when they are done with,
but leaves those that were cached before. Elsewhere, what was read is dropped behind the cursor, and what was written
when it is flushed.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

RWF_DONTCACHE = 0x80

_PAGE = mmap.PAGESIZE

MAX_CALL_BYTES = 1 << 30
"""Linux moves at most 2 GiB in one call."""

_LEAST_UNCACHED = 16 * _PAGE
"""Below this, a call of its own for the pages in the middle costs more than it saves."""

_BEHIND = 16 << 20
"""How far behind the cursor to drop again: pages kept together are dropped when the last of them is passed."""


class UncachedFile:
    """An open file for positioned I/O past the page cache, for any thread. It does not close the file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._flags = RWF_DONTCACHE
        self._is_dirty = False
        self._failure: OSError | None = None

    def read(self, buffer: memoryview, offset: int) -> int:
        """One call of preadv(2): bytes read into `buffer`, 0 at the end of the file. Raises OSError."""
        flags = self._flags
        if flags:
            try:
                return os.preadv(self.fd, [buffer], offset, flags)
            except OSError as error:
                self._go_without(flags, error)
        count = os.preadv(self.fd, [buffer], offset)
        start = max(0, offset - _BEHIND)
        os.posix_fadvise(self.fd, start, offset + count - start, os.POSIX_FADV_DONTNEED)
        return count

    def write(self, data: memoryview, offset: int) -> int:
        """One call of pwritev(2) on a part of `data`: bytes written. Raises OSError.

        Pages at the edges, which a neighbour's bytes share, are written through the cache: past it they would be read
        back from the disk for their other half.
        """
        end = offset + len(data)
        first, last = -(-offset // _PAGE) * _PAGE, end // _PAGE * _PAGE
        flags = self._flags
        if last - first < _LEAST_UNCACHED:
            flags = 0
        elif flags:
            flags, end = (0, first) if offset < first else (flags, last)
        try:
            return os.pwritev(self.fd, [data[: end - offset]], offset, flags)
        except OSError as error:
            self._go_without(flags, error)
            return os.pwritev(self.fd, [data], offset)
        finally:
            self._is_dirty = True

    def flush(self) -> None:
        """Wait until all that was written before is on disk, then drop its pages. Not for two threads at once.

        Raises OSError, and from then on always: Linux forgets what it failed to write, and a second try would succeed.
        """
        if self._is_dirty or self._failure:
            self._is_dirty = False
            self._sync(os.fdatasync)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def fsync(self) -> None:
        """As `flush`, of the file's metadata too, and whether or not this wrote anything."""
        self._sync(os.fsync)

    def _sync(self, call: Callable[[int], None]) -> None:
        if self._failure:
            raise self._failure
        try:
            call(self.fd)
        except OSError as error:
            self._failure = error
            raise

    def _go_without(self, flags: int, error: OSError) -> None:
        """Raise the error of a call with `flags`, unless it may be of the flags: then never use them again."""
        if not flags or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise error
        self._flags = 0


_AT_FDCWD = -100

_RENAME_EXCHANGE = 2


def fallocate(fd: int, nbytes: int) -> None:
    """Reserve the first `nbytes` of a file.

    Unlike `os.posix_fallocate`, this fails where the file system reserves nothing: glibc then writes to every block.
    """
    _call("fallocate", ctypes.c_int(fd), ctypes.c_int(0), ctypes.c_int64(0), ctypes.c_int64(nbytes))


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step."""
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    _call("renameat2", _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags)


def _call(name: str, *arguments: Any) -> None:
    function = getattr(_libc(), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    while function(*arguments):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
