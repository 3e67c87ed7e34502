"""Locks between runs, on one machine or on several that share a file system: they die with their process.

The lock is on a regular file that is open for writing: NFS makes a `flock` one of `fcntl`'s, which asks for that.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsv4_shard.errors import OutputBusy, OutputError, WriteFailed
from dsv4_shard.storage.staged_file import fsync_folder

MARKER = ".dsv4-shard-staging"
"""The file of a `LockedFolder` that is its lock, by which it is known as ours."""


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


class LockedFolder:
    """A folder that one run works in at a time, made if need be; `out` is what messages call it."""

    def __init__(self, path: Path, out: Path | str) -> None:
        self.path, self._out = path, out
        self._lock = -1

    def acquire(self) -> None:
        """Make and lock it. Raises OutputBusy, OutputError or WriteFailed."""
        try:
            self._lock = self._acquire()
            fsync_folder(self.path)
            with contextlib.suppress(OSError):  # a full disk is no reason not to go on
                (self.path / MARKER).write_text(f"process {os.getpid()} on {os.uname().nodename}")
        except OSError as error:
            self.release()
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def _acquire(self) -> int:
        while True:
            made = False
            with contextlib.suppress(FileExistsError):
                self.path.mkdir()
                made = True
            try:
                self._refuse_foreign()
                return acquire(self.path / MARKER, wait=False)
            except FileNotFoundError:
                continue  # another run committed or removed the folder meanwhile
            except BlockingIOError:
                raise OutputBusy(
                    f"{self._out}: another dsv4-shard is writing it ({self._owner()})",
                    hint="Wait for it, or choose another folder.",
                ) from None
            except OSError:
                if made:
                    (self.path / MARKER).unlink(missing_ok=True)
                    self.path.rmdir()
                raise

    def _refuse_foreign(self) -> None:
        """Raise OutputError for a folder that is not ours, and FileNotFoundError where it is gone."""
        if not stat.S_ISDIR(os.lstat(self.path).st_mode):
            raise OutputError(f"{self.path}: not a folder", hint="Move it away, then run again.")
        if not (self.path / MARKER).exists() and any(self.path.iterdir()):
            raise OutputError(
                f"{self.path}: holds files that dsv4-shard did not make", hint="Move them away, then run again."
            )

    def _owner(self) -> str:
        """Who has the lock, as far as it is known."""
        try:
            return (self.path / MARKER).read_text()[:100] or "unknown"
        except (OSError, ValueError):
            return "unknown"

    def remove(self) -> None:
        """Remove it, from which all else is gone. Raises OSError."""
        (self.path / MARKER).unlink()
        self.release()  # NFS keeps a file that is open, and with it the folder
        self.path.rmdir()

    def release(self) -> None:
        """Leave it to others, if it is not already."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
