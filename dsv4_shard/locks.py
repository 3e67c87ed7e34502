"""Locks between runs, on one machine or on several that share a file system: they die with their process.

The lock is on a regular file that is open for writing: NFS makes a `flock` one of `fcntl`'s, which asks for that.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def acquire(path: Path, *, wait: bool) -> int:
    """Lock the file `path`, made if need be; the lock holds until the descriptor that is returned is closed.

    Raises BlockingIOError where someone else has it and `wait` is off, and OSError.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(fd)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # who had it removed the file between open and lock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of the file `path`, which is gone when nobody has it. Raises OSError."""
    fd = acquire(path, wait=True)
    try:
        yield
    finally:
        try:
            with contextlib.suppress(OSError):
                path.unlink()
        finally:
            os.close(fd)
