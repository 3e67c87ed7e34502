"""Claims on ranks: no two runs write the same rank into one folder at the same time.

The claims on OUT are locks on parts of the file `.OUT.claims`, which has a part for each rank. They are fcntl locks of
an open file, which NFS has too, so a claim ends with its process, on any machine. At the beginning of a claim stands
its owner.
"""

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from dsv4_shard.catalog.rank_ranges import MAX_RANKS, say_ranks
from dsv4_shard.errors import OutputBusy
from dsv4_shard.storage import plain

_PART_BYTES = 128
"""Bytes of the file for each rank: room for an owner."""

_FLOCK = struct.Struct("hhxxxxqqixxxx")
"""`struct flock` of 64-bit Linux: type, whence, start, length, process."""

_REMOVAL_SECONDS = 0.5
"""A run that ends locks the whole file for a moment, to remove it."""


@contextmanager
def claimed(out: Path, ranks: Iterable[int], *, is_share: bool) -> Iterator[None]:
    """Hold the claim on `ranks` of the result `out` inside the block; on all ranks if it is no share.

    Without a claim, where the folder cannot be written to or its file system has no such locks: the run itself says so,
    or shares that overlap are refused when they join. Raises OutputBusy if another run has one of the ranks.
    """
    path = plain(out).parent / f".{plain(out).name}.claims"
    wanted = sorted(ranks) if is_share else list(range(MAX_RANKS))
    fd = _claim(path, out, wanted)
    try:
        yield
    finally:
        if fd is not None:
            with contextlib.suppress(OSError):
                _remove(path, fd)
            os.close(fd)


def _remove(path: Path, fd: int) -> None:
    """Remove the file if nobody has a claim any more. Raises OSError, for example if somebody has."""
    _lock(fd, 0, 0, fcntl.F_UNLCK)  # of two runs that end together, one must find no lock of the other
    _lock(fd, 0, 0)
    if os.path.samestat(os.stat(path), os.fstat(fd)):
        path.unlink()


def _claim(path: Path, out: Path, ranks: list[int]) -> int | None:
    """The file, with the locks; None if there are no such locks here."""
    patience = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        try:
            for first, count in _runs(ranks):
                _lock(fd, first * _PART_BYTES, count * _PART_BYTES)
                with contextlib.suppress(OSError):  # the lock works without its text, for example on a full disk
                    os.pwrite(fd, _owner().ljust(_PART_BYTES, b"\0"), first * _PART_BYTES)
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                return fd
        except BlockingIOError:
            if time.monotonic() >= patience:
                error = _busy(fd, out, ranks)
                os.close(fd)
                raise error from None
            time.sleep(_REMOVAL_SECONDS / 20)
        except FileNotFoundError:
            pass  # its last owner removed the file between open and lock
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        os.close(fd)


def _runs(ranks: list[int]) -> Iterator[tuple[int, int]]:
    """(First rank, number of ranks) of each run of sorted ranks."""
    for _, run in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0]):
        found = [rank for _, rank in run]
        yield found[0], len(found)


def _owner() -> bytes:
    return f"process {os.getpid()} on {os.uname().nodename}".encode()[:_PART_BYTES]


def _lock(fd: int, start: int, nbytes: int, kind: int = fcntl.F_WRLCK) -> None:
    """Lock or unlock bytes of a file; 0 means up to its end and beyond. Raises BlockingIOError if others have one."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, nbytes, 0))


def _busy(fd: int, out: Path, ranks: list[int]) -> OutputBusy:
    """The error that names the ranks that others have, and the owner of the first."""
    taken, owners = [], []
    for rank in ranks:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, rank * _PART_BYTES, _PART_BYTES, 0)
        kind, _, start, _, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        if kind != fcntl.F_UNLCK:
            taken.append(rank)
            owners.append(os.pread(fd, _PART_BYTES, start).rstrip(b"\0").decode(errors="replace"))
    which = say_ranks(taken) if taken and len(taken) < MAX_RANKS else "it"
    return OutputBusy(
        f"{out}: another dsv4-shard is writing {which} ({next(filter(None, owners), 'unknown')})",
        hint="Wait for it, name other ranks (--ranks), or choose another folder.",
    )
