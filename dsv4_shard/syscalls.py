"""Linux system calls that Python's `os` does not have. Each raises OSError: ENOSYS where the C library lacks it too."""

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

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
