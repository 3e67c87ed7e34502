"""Whether the next read of a file comes from memory or from the disk."""

import os
from pathlib import Path

BUFFER_BYTES = 8 << 20


def warm(folder: Path) -> None:
    """Read every file, so that the page cache holds them, as far as memory allows."""
    buffer = bytearray(BUFFER_BYTES)
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(folder: Path) -> None:
    """Take every file out of the page cache.

    These files only, which needs no root: emptying all of it would also make Python's own start wait for the disk.
    """
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())  # a page that is still to be written stays
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepare(folder: Path, cold: bool) -> None:
    """Make the next read of the folder cold or warm."""
    if cold:
        drop(folder)
    else:
        warm(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
