"""Locks between runs, on one machine or over a shared file system. A lock ends with its process.

The lock is a `flock` on a regular file that is open for writing: NFS turns a `flock` into an `fcntl` lock, which needs
write access.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsv4_shard.errors import OutputBusy, OutputError, ReadFailed, WriteFailed
from dsv4_shard.limits import NAME
from dsv4_shard.storage.regular_file import read_regular
from dsv4_shard.storage.staged_file import fsync_folder

MARKER = ".dsv4-shard-staging"
"""Name of the lock file in a `LockedFolder`. It also marks the folder as made by dsv4-shard."""


def acquire(path: Path, *, wait: bool) -> int:
    """Lock the file `path`, creating it if needed, and return its descriptor. Closing the descriptor ends the lock.

    Raises BlockingIOError if another process has the lock and `wait` is off, and OSError if the file cannot be used.
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
        os.close(fd)  # the previous owner removed the file between open and flock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on the file `path` inside the block, waiting for it first. The file is removed afterwards.

    Raises OSError if the file cannot be locked.
    """
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
    """A folder in which only one run works at a time. `out` is its name in messages."""

    def __init__(self, path: Path, out: Path | str) -> None:
        self.path, self._out = path, out
        self._lock = -1

    def acquire(self) -> None:
        """Create the folder if needed, and lock it.

        Raises OutputBusy if another run has the lock, OutputError if the path is not a folder of dsv4-shard, and
        WriteFailed if the system refuses.
        """
        try:
            self._lock = self._acquire()
            fsync_folder(self.path)
            with contextlib.suppress(OSError):  # the lock works without its text, for example on a full disk
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
        """Raise OutputError if the folder was not made by dsv4-shard, FileNotFoundError if it no longer exists."""
        if not stat.S_ISDIR(os.lstat(self.path).st_mode):
            raise OutputError(f"{self.path}: not a folder", hint="Move it away, then run again.")
        if not (self.path / MARKER).exists() and any(self.path.iterdir()):
            raise OutputError(
                f"{self.path}: holds files that dsv4-shard did not make", hint="Move them away, then run again."
            )

    def _owner(self) -> str:
        """Return process and machine of the lock's owner, or `unknown`."""
        try:
            return read_regular(self.path / MARKER, NAME).decode()[:100] or "unknown"
        except (ReadFailed, ValueError):
            return "unknown"

    def remove(self) -> None:
        """Remove the folder, which must hold nothing but the lock file. Raises OSError."""
        (self.path / MARKER).unlink()
        self.release()  # NFS keeps the name of an open file, so the folder would not be empty
        self.path.rmdir()

    def release(self) -> None:
        """Release the lock. Does nothing if it is not held."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
