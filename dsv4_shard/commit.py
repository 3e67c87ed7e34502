"""Staging, fsync, rename: a folder appears under its final name when all of it is durable, or not at all.

Everything is written into `.NAME.partial/result` beside the target. `.NAME.partial` is locked while a run is alive; one
that a killed run left behind is emptied by the next. The manifest is written last, then the result is renamed: write,
fsync(files), fsync(folder), rename, fsync(parent), since rename alone is not durable on every file system.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from dsv4_shard.errors import NotEnoughDisk, OutputBusy, OutputError, OutputInsideInput, OutputNotEmpty, WriteFailed

MANIFEST_NAME = "manifest.json"
_MARKER = ".dsv4-shard-staging"
_RESULT = "result"
_REPLACED = "replaced"
_WRITE_CALL_BYTES = 1 << 30
_RENAME_EXCHANGE = 2


def check_output(out: Path, source_root: Path, overwrite: bool) -> None:
    """Refuse an output that is the input, holds it or lies in it, or that something else already occupies.

    Raises OutputInsideInput, OutputNotEmpty or OutputError.
    """
    target, source = out.resolve(), source_root.resolve()
    if not out.is_symlink() and out.is_dir() and out.is_mount():
        raise OutputError(f"{out}: a mount point cannot be replaced", hint=f"Name a folder in it: {out / 'shards'}")
    if target == source or target.is_relative_to(source) or source.is_relative_to(target):
        relation = "is" if target == source else "lies in" if target.is_relative_to(source) else "holds"
        raise OutputInsideInput(f"{out}: the output {relation} the checkpoint {source_root}")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: not a folder", hint="Choose a name that is free.")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder", hint=f"Make it first: mkdir -p {out.parent}")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise OutputNotEmpty(f"{out}: not empty", hint="Choose another folder, or replace it with --overwrite.")
        if not (out / MANIFEST_NAME).is_file():
            raise OutputNotEmpty(
                f"{out}: holds no {MANIFEST_NAME}, so it was not made by dsv4-shard and is not overwritten",
                hint="Choose another folder, or empty this one yourself.",
            )


def check_room(out: Path, needed: int) -> None:
    """Raise NotEnoughDisk where the file system of `out` has less than `needed` bytes free."""
    free = free_bytes(out)
    if free < needed:
        raise NotEnoughDisk(
            f"{out}: needs {needed:,} bytes, the file system has {free:,} free ({needed - free:,} missing)",
            hint="Write a node's share (--ranks 0-7), or choose another file system.",
        )


def free_bytes(out: Path) -> int:
    """Bytes free for this user where `out` will be."""
    return shutil.disk_usage(_plain(out).parent).free


def _plain(out: Path) -> Path:
    """`out` with a name of its own, also where it is given as `.` or ends in `..`."""
    return Path(os.path.abspath(out))


class Staging:
    """A folder in the making. Use as a context: what is not committed at its end is removed."""

    def __init__(self, out: Path) -> None:
        self.out = _plain(out)
        self.path = self.out.parent / f".{self.out.name}.partial"
        self.folder = self.path / _RESULT
        self._lock = -1
        self._ours = False
        self._fds: dict[str, int] = {}

    def __enter__(self) -> "Staging":
        try:
            self._lock = self._acquire()
            self._empty()
            self._ours = True
            (self.path / _MARKER).touch()
            self.folder.mkdir()
        except OSError as error:
            self._release()
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error
        except OutputError:
            self._release()
            raise
        return self

    def _acquire(self) -> int:
        """The staging folder, made and locked. The lock is on the folder itself: it dies with the process."""
        while True:
            made = False
            with contextlib.suppress(FileExistsError):
                self.path.mkdir()
                made = True
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise OutputBusy(
                    f"{self.out}: another dsv4-shard is writing it", hint="Wait for it, or choose another folder."
                ) from None
            except OSError:
                os.close(fd)
                if made:
                    self.path.rmdir()
                raise
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(fd).st_ino:
                    return fd
            os.close(fd)  # another run committed or removed the folder between open and lock

    def _empty(self) -> None:
        """Remove what a killed run left; refuse a folder that is not ours."""
        left = list(self.path.iterdir())
        if left and not (self.path / _MARKER).exists():
            raise OutputError(
                f"{self.path}: holds files that dsv4-shard did not make", hint="Move them away, then run again."
            )
        if left:
            self._clear()

    def _clear(self) -> None:
        """Empty the staging folder, the marker last: until then what is left of it is known to be ours."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != _MARKER:
                entry.unlink()
        (self.path / _MARKER).unlink(missing_ok=True)

    def create(self, name: str, nbytes: int) -> int:
        """A new file of `nbytes`, its blocks reserved where the file system can; returns its descriptor."""
        path = self.folder / name
        try:
            if path.parent != self.folder:
                path.parent.mkdir(exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._fds[name] = fd
            try:
                os.posix_fallocate(fd, 0, max(nbytes, 1))
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise
            os.ftruncate(fd, nbytes)
        except OSError as error:
            raise WriteFailed(f"{path}: cannot make a file of {nbytes} bytes: {error.strerror}") from error
        return fd

    def adopt(self, name: str, original: Path) -> bool:
        """Make `name` a hard link to a file outside; False where it cannot be one, and is to be created."""
        path = self.folder / name
        try:
            path.parent.mkdir(exist_ok=True)
            os.link(original.resolve(), path)
            self._fds[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise WriteFailed(f"{path}: cannot link to {original}: {error.strerror}") from error
        return True

    def link(self, name: str, links: Sequence[str]) -> None:
        """Further names for a file: hard links, or copies where the file system has none."""
        for link in links:
            try:
                (self.folder / link).parent.mkdir(exist_ok=True)
                os.link(self.folder / name, self.folder / link)
            except OSError as error:
                if error.errno not in _CANNOT_LINK:
                    raise WriteFailed(f"{self.folder / link}: cannot link: {error.strerror}") from error
                self._copy(name, link)

    def _copy(self, name: str, twin: str) -> None:
        try:
            shutil.copyfile(self.folder / name, self.folder / twin)
            self._fds[twin] = os.open(self.folder / twin, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise WriteFailed(f"{self.folder / twin}: {error.strerror}") from error

    def write_file(self, name: str, content: bytes) -> None:
        """A small file, whole."""
        fd = self.create(name, len(content))
        pwrite_all(fd, 0, memoryview(content), self.folder / name)

    def commit(self, manifest: bytes, overwrite: bool) -> None:
        """Make everything durable, the manifest last, and give the folder its final name. Raises WriteFailed."""
        try:
            for fd in self._fds.values():
                os.fsync(fd)
            self.write_file(MANIFEST_NAME, manifest)
            os.fsync(self._fds[MANIFEST_NAME])
            for folder in sorted({(self.folder / name).parent for name in self._fds}, reverse=True):
                _fsync_folder(folder)
            self._rename(overwrite)
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def _rename(self, overwrite: bool) -> None:
        """Give the folder its final name, durably, or leave what was there."""
        replaced = overwrite and self.out.exists()
        swapped = replaced and _exchange(self.folder, self.out)
        try:
            if not swapped:
                if replaced:
                    os.rename(self.out, self.path / _REPLACED)
                os.rename(self.folder, self.out)
            _fsync_folder(self.out.parent)
        except BaseException:
            self._undo_rename(swapped)
            raise

    def _undo_rename(self, swapped: bool) -> None:
        if swapped:
            _exchange(self.folder, self.out)
            return
        if not self.folder.exists():
            os.rename(self.out, self.folder)
        if (self.path / _REPLACED).exists():
            os.rename(self.path / _REPLACED, self.out)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        if self._ours:
            with contextlib.suppress(OSError):
                self._clear()
                self.path.rmdir()
            self._ours = False
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


_CANNOT_RESERVE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""The file system reserves nothing, which is no reason to stop."""


_CANNOT_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV)
"""The file system has no hard links, or no more for this file, or none for files of others; or it is another one."""


class FileSink:
    """Writes pieces to the staged files; those without a descriptor have all their bytes. See `copying.Sink`."""

    def __init__(self, fds: Sequence[int | None], paths: Sequence[Path]) -> None:
        self._fds = fds
        self._paths = paths

    def put(self, file: int, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` of file number `file`, unless it is there. Raises WriteFailed with the offset."""
        fd = self._fds[file]
        if fd is not None:
            pwrite_all(fd, offset, data, self._paths[file])


def pwrite_all(fd: int, offset: int, data: memoryview, path: Path) -> None:
    """Write all of `data`, however little a call takes. Raises WriteFailed."""
    done = 0
    while done < len(data):
        try:
            done += os.pwrite(fd, data[done : done + _WRITE_CALL_BYTES], offset + done)
        except OSError as error:
            raise WriteFailed(f"{path}: write at byte {offset + done} failed: {error.strerror}") from error


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at = -100  # AT_FDCWD
    if libc.renameat2(at, os.fsencode(one), at, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
