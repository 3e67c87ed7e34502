"""Linux calls that Python lacks: uncached reads and writes, fallocate, mincore, atomic exchange of two names,
prctl.

Uncached I/O keeps a copy of hundreds of gigabytes from evicting the page cache of the machine. With RWF_DONTCACHE
(Linux 6.14, on file systems that support it), Linux drops pages after they were read, except pages that were cached
before. Without it, they are dropped behind the cursor. Written pages are dropped by the next flush, so that until then
they can be read back without the disk.
"""

import ctypes
import errno
import mmap
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

RWF_DONTCACHE = 0x80

_PAGE = mmap.PAGESIZE

MAX_CALL_BYTES = 1 << 30
"""Most bytes in one read or write call; Linux itself moves at most 2 GiB."""

WRITE_BYTES = 256 << 10
"""Most bytes in one write call, which ends at a multiple of it in the file.

Linux caches what a longer call writes in larger contiguous pieces of memory. Calls of 8 MiB took ten times the CPU of
these (Linux 6.18, ext4, a virtual machine).
"""

_MIN_STARTED_BYTES = 16 * _PAGE
"""Shorter writes wait for Linux to write them: starting each would cost more than it saves."""

_DROP_BEHIND_BYTES = 16 << 20
"""Bytes behind the cursor to drop again: Linux drops a large folio only when its last page has been passed."""

_SYNC_FILE_RANGE_WRITE = 2

_AT_FDCWD = -100

_RENAME_EXCHANGE = 2

_PR_SET_PDEATHSIG = 1

_KEEP_SIZE, _PUNCH_HOLE = 1, 2


class UncachedFile:
    """Positioned I/O on an open file that leaves nothing in the page cache. Thread-safe, except `flush`.

    The caller closes the descriptor.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._flags = RWF_DONTCACHE
        self._failure: OSError | None = None

    def read(self, buffer: memoryview, offset: int) -> int:
        """Read into `buffer` from byte `offset` with one preadv(2); return the bytes read, 0 at the end of the file.

        Raises OSError if the read fails.
        """
        flags = self._flags
        if flags:
            try:
                return os.preadv(self.fd, [buffer], offset, flags)
            except OSError as error:
                self._disable_flags(flags, error)
        count = os.preadv(self.fd, [buffer], offset)
        start = max(0, offset - _DROP_BEHIND_BYTES)
        os.posix_fadvise(self.fd, start, offset + count - start, os.POSIX_FADV_DONTNEED)
        return count

    def write(self, data: memoryview, offset: int) -> int:
        """Write the beginning of `data` at byte `offset` with one pwritev(2); return the bytes written.

        The disk gets its whole pages at once, so that no later flush finds much to wait for. Raises OSError if the
        write fails.
        """
        count = os.pwritev(self.fd, [data], offset)
        first, last = -(-offset // _PAGE) * _PAGE, (offset + count) // _PAGE * _PAGE
        if last - first >= _MIN_STARTED_BYTES:
            _start_writing(self.fd, first, last - first)
        return count

    def flush(self, keep_from: int | None = None) -> None:
        """Wait until all earlier writes are on disk, of other processes too, then drop their pages.

        Only one thread at a time may call this. Pages from byte `keep_from` on stay in the page cache. Raises OSError
        if a write failed, then again on each later call: Linux reports a failed write only once, so a second fdatasync
        would succeed.
        """
        self._sync(os.fdatasync)
        if keep_from != 0:
            os.posix_fadvise(self.fd, 0, keep_from or 0, os.POSIX_FADV_DONTNEED)

    def fsync(self) -> None:
        """Make the file's content and metadata durable, even if nothing was written. Raises OSError as `flush` does."""
        self._sync(os.fsync)

    def _sync(self, call: Callable[[int], None]) -> None:
        if self._failure:
            raise self._failure
        try:
            call(self.fd)
        except OSError as error:
            self._failure = error
            raise

    def _disable_flags(self, flags: int, error: OSError) -> None:
        """Stop using `flags` if the file system may not support them; raise any other error."""
        if not flags or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise error
        self._flags = 0


def fallocate(fd: int, nbytes: int) -> None:
    """Reserve disk blocks for the first `nbytes` of a file.

    Raises OSError if the file system cannot reserve. `os.posix_fallocate` would not: glibc then writes to each block.
    """
    _call("fallocate", ctypes.c_int(fd), ctypes.c_int(0), ctypes.c_int64(0), ctypes.c_int64(nbytes))


def punch_hole(fd: int, offset: int, nbytes: int) -> None:
    """Free the disk blocks of these bytes, which read as zeros afterwards. Raises OSError if the file system cannot."""
    mode = ctypes.c_int(_KEEP_SIZE | _PUNCH_HOLE)
    _call("fallocate", ctypes.c_int(fd), mode, ctypes.c_int64(offset), ctypes.c_int64(nbytes))


def _start_writing(fd: int, offset: int, nbytes: int) -> None:
    """Make Linux write these bytes soon. Only a hint: file systems that cannot, and errors of writes, are ignored.

    Linux reports the errors again at the next fsync.
    """
    flags = ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
    with suppress(OSError):
        _call("sync_file_range", ctypes.c_int(fd), ctypes.c_int64(offset), ctypes.c_int64(nbytes), flags)


def is_cached(address: int, nbytes: int) -> bool:
    """Whether the page cache holds most of these bytes of a mapped file. `address` begins a page of the mapping."""
    pages = (ctypes.c_ubyte * -(-nbytes // _PAGE))()
    try:
        _call("mincore", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), pages)
    except OSError:
        return False
    return 2 * bytes(pages).count(1) > len(pages)


def exchange(one: Path, other: Path) -> None:
    """Swap two names atomically. Raises OSError if the file system cannot."""
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    _call("renameat2", _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags)


def die_with_parent(parent: int) -> None:
    """Have this process killed when the thread that forked it ends. `parent` is its process; if it is gone, exit."""
    with suppress(OSError):
        _call("prctl", ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


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
