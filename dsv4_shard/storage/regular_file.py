"""Opens regular files only, and reads small ones within a limit: a device or a pipe would block or never end."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from dsv4_shard.errors import ReadFailed
from dsv4_shard.limits import Limit

_CHUNK_BYTES = 1 << 20


def open_regular(path: Path) -> int:
    """Open a file for reading and return its descriptor. Links are followed.

    Raises ReadFailed if it is not a readable regular file.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        mode = os.fstat(fd).st_mode
    except OSError as error:
        raise ReadFailed(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise ReadFailed(f"{path}: {'a directory' if stat.S_ISDIR(mode) else 'a pipe, socket or device'}, not a file")
    return fd


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = open_regular(path)
    try:
        yield fd
    except OSError as error:
        raise ReadFailed(f"{path}: {error.strerror}") from error
    finally:
        os.close(fd)


def read_regular(path: Path, limit: Limit) -> bytes:
    """Return the content of a regular file of at most `limit.nbytes` bytes.

    Raises ReadFailed if it is larger, also while it grows, or cannot be read.
    """
    with _opened(path) as fd:
        nbytes = os.fstat(fd).st_size
        content = _read(fd, limit.nbytes + 1) if nbytes <= limit.nbytes else b""
        if (found := max(nbytes, len(content))) > limit.nbytes:
            raise ReadFailed(f"{path}: {found:,} bytes, too large: at most {limit.nbytes:,} are read")
        return content


def _read(fd: int, most: int) -> bytes:
    parts, left = [], most
    while left and (part := os.read(fd, min(left, _CHUNK_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def digest_of_file(path: Path) -> str:
    """Return the xxh3-128 of a regular file of any size, in hexadecimal, as `digest_of` does. Raises ReadFailed."""
    return digests_of_file(path)[0]


def digests_of_file(path: Path) -> tuple[str, str]:
    """Return the xxh3-128 and the SHA-256 of a regular file of any size, in hexadecimal. Raises ReadFailed."""
    fast, strong = xxhash.xxh3_128(), hashlib.sha256()
    with _opened(path) as fd:
        while part := os.read(fd, _CHUNK_BYTES):
            fast.update(part)
            strong.update(part)
    return fast.hexdigest(), strong.hexdigest()
