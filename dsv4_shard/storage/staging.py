"""Stage, fsync, rename: a result folder appears under its final name complete and durable, or not at all.

A run writes into `.NAME.partial/result` beside the target. It locks `.NAME.partial`, which also holds its journal. The
next run resumes from what an interrupted run left there, or deletes it. The manifest is written last. The order is
write, fsync(files), fsync(folder), rename, fsync(parent), because a rename alone is not durable on every file system.

Each share of the ranks has its own staging folder, for example `.NAME.ranks-8-15.partial`. The first share that ends
becomes the result folder. Each later share moves its files into it and replaces the manifest last, atomically, while
it holds `.NAME.lock`.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from dsv4_shard.errors import OtherRun, OutputNotEmpty, RanksThere, SourceChanged, WriteFailed
from dsv4_shard.storage import linux_io
from dsv4_shard.storage.locks import MARKER, LockedFolder, locked
from dsv4_shard.storage.output_folder import MANIFEST_NAME, folders_of, plain, refuse_strangers
from dsv4_shard.storage.staged_file import StagedFile, fsync_folder

_RESULT = "result"

_REPLACED = "replaced"

_JOURNAL = "journal"

_SET_ASIDE = "journal.set-aside"

_CANNOT_RESERVE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system that cannot reserve blocks. Writing works without it."""

_CANNOT_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV)
"""Errors of a hard link: not supported, too many, not allowed for files of other users, or another file system."""

_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system that cannot swap two names atomically."""


class Staging:
    """A locked staging folder for the result `out`. Use it as a context manager.

    Leaving the context removes what was not committed, unless an error ended the run and a journal allows a later run
    to resume.

    Attributes:
        out: Absolute path of the result.
        path: The staging folder, locked inside the context.
        folder: The result being written, inside `path`.
        journal: Path of the journal, inside `path`.
    """

    def __init__(self, out: Path, share: str = "") -> None:
        """Stage the result `out`, or only the ranks that `share` names (`8-15`)."""
        self.out = plain(out)
        self.path = self.out.parent / f".{self.out.name}.{share and f'ranks-{share}.'}partial"
        self.folder = self.path / _RESULT
        self.journal = self.path / _JOURNAL
        self._own = LockedFolder(self.path, self.out)
        self._files: dict[str, StagedFile] = {}

    def __enter__(self) -> "Staging":
        self._own.acquire()
        try:
            if (self.path / _REPLACED).exists() and not self.out.exists():
                os.rename(self.path / _REPLACED, self.out)  # an earlier run was killed between its two renames
        except OSError as error:
            self._own.release()
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error
        return self

    def begin(self) -> None:
        """Delete what an earlier run left, and create an empty `folder`. Raises WriteFailed."""
        try:
            self._clear()
            self.folder.mkdir()
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def holds(self, name: str, nbytes: int, original: Path | None) -> bool:
        """Return whether an earlier run left the file `name` of `nbytes`, from `create` or as a link to `original`."""
        try:
            found = os.lstat(self.folder / name)
        except OSError:
            return False
        is_own = found.st_nlink == 1 or (original is not None and self.links_to(name, original))
        return stat.S_ISREG(found.st_mode) and found.st_size == nbytes and is_own

    def links_to(self, name: str, original: Path) -> bool:
        """Return whether a staged file is a hard link to `original`, which lies outside of the staging folder."""
        try:
            return (self.folder / name).samefile(original)
        except OSError:
            return False

    def keep_only(self, files: Container[str]) -> None:
        """Remove every staged file that is not in `files`; the run writes those again. Raises WriteFailed."""
        try:
            for path in self._staged():
                if path.relative_to(self.folder).as_posix() not in files:
                    path.unlink()
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def nbytes_on_disk(self) -> int:
        """Return the disk bytes allocated to staged files, without hard links to files outside."""
        stats = [os.lstat(path) for path in self._staged()]
        return sum(found.st_blocks * 512 for found in stats if found.st_nlink == 1)

    def _staged(self) -> Iterator[Path]:
        return (path for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir())

    def create(self, name: str, nbytes: int) -> StagedFile:
        """Create a file of `nbytes`, with its blocks reserved if the file system can. Raises WriteFailed."""
        path = self.folder / name
        try:
            if path.parent != self.folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            file = self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                linux_io.fallocate(file.fd, max(nbytes, 1))
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise
            os.ftruncate(file.fd, nbytes)
        except OSError as error:
            raise WriteFailed(f"{path}: cannot make a file of {nbytes} bytes: {error.strerror}") from error
        return file

    def reopen(self, name: str) -> StagedFile:
        """Open a file that an earlier run created, to continue writing it. Raises WriteFailed."""
        try:
            return self._open(name, os.O_RDWR | os.O_NOFOLLOW)
        except OSError as error:
            raise WriteFailed(f"{self.folder / name}: {error.strerror}") from error

    def _open(self, name: str, flags: int) -> StagedFile:
        file = StagedFile(os.open(self.folder / name, flags | os.O_CLOEXEC, 0o666), self.folder / name)
        self._files[name] = file
        return file

    def adopt(self, name: str, original: Path) -> bool:
        """Make `name` a hard link to the file `original`. Return False if links are impossible: then create a copy.

        Raises WriteFailed for any other error.
        """
        path = self.folder / name
        try:
            path.parent.mkdir(exist_ok=True)
            os.link(original.resolve(), path)
            self._open(name, os.O_RDONLY)
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise WriteFailed(f"{path}: cannot link to {original}: {error.strerror}") from error
        return True

    def link(self, name: str, links: Sequence[str]) -> None:
        """Give a staged file more names: hard links, or copies if links are impossible. Raises WriteFailed."""
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
            self._open(twin, os.O_RDWR)
        except OSError as error:
            raise WriteFailed(f"{self.folder / twin}: {error.strerror}") from error

    def write_file(self, name: str, content: bytes) -> None:
        """Create a small file with its content. Raises WriteFailed."""
        self.create(name, len(content)).write(0, memoryview(content))

    def write_durably(self, name: str, content: bytes) -> None:
        """Create a small file, and make it durable. Call it inside `ending`. Raises WriteFailed."""
        self.write_file(name, content)
        try:
            self._files[name].fsync()
            fsync_folder(self.folder)
        except OSError as error:
            raise WriteFailed(f"{self.folder / name}: {error.strerror}") from error

    def settle(self) -> None:
        """Make all open files and their folders durable. Raises OSError."""
        for file in self._files.values():
            file.fsync()
        for folder in (*folders_of(self._files), ""):
            fsync_folder(self.folder / folder)
        for outer in (self.path, self.path.parent):
            fsync_folder(outer)

    @contextmanager
    def out_locked(self) -> Iterator[None]:
        """Hold the lock on the final name inside the block, so that no other run changes it. Raises WriteFailed."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.out.parent / f".{self.out.name}.lock"))
            except OSError as error:
                raise WriteFailed(f"{self.out}: cannot be locked: {error.strerror}") from error
            yield

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Make all staged files durable, then hold `out_locked` inside the block, for `commit` or `join`.

        Raises WriteFailed.
        """
        try:
            self.settle()
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error
        with self.out_locked():
            yield

    def commit(self, manifest: bytes, replaces: Collection[str] = ()) -> None:
        """Add the manifest, and give the folder its final name.

        Args:
            manifest: Content of the manifest.
            replaces: Files of an existing result, which is replaced.

        Raises:
            OutputNotEmpty: The existing folder holds other files. It stays.
            WriteFailed: The system refuses a step.
        """
        try:
            self.write_durably(MANIFEST_NAME, manifest)
            self._rename(replaces)
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def join(self, manifest: bytes, new: Mapping[str, str]) -> None:
        """Move staged files into the existing result, and replace its manifest.

        The manifest is replaced last and atomically. Until then, the result is unchanged for its readers.

        Args:
            manifest: Content of the new manifest.
            new: File to move → the result's file with equal content, or "" if there is none. A file with an equal one
                becomes a hard link to it.

        Raises:
            WriteFailed: The system refuses a step.
        """
        try:
            self.write_durably(MANIFEST_NAME, manifest)
            for name, twin in new.items():
                (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                if not (twin and self._link_there(twin, name)):
                    os.rename(self.folder / name, self.out / name)
            for root in (self.out, self.folder):
                for folder in (*folders_of(new), ""):
                    fsync_folder(root / folder)
            os.rename(self.folder / MANIFEST_NAME, self.out / MANIFEST_NAME)
            for root in (self.out, self.folder):
                fsync_folder(root)
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def _link_there(self, twin: str, name: str) -> bool:
        """Make `name` in the result a hard link to its file `twin`. Return False if links are impossible."""
        try:
            os.link(self.out / twin, self.out / name)
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise
        return True

    @property
    def is_sealed(self) -> bool:
        """Whether an earlier run added the manifest, so that it may have begun to `join`."""
        return (self.folder / MANIFEST_NAME).exists()

    def take_back(self, files: Container[str], names: Iterable[str]) -> None:
        """Undo a `join` that was killed. Call it inside `out_locked`.

        Args:
            files: Files that this run stages. They move back into the staging folder.
            names: All names that the killed `join` may have moved, none of them in the result's manifest. Those that
                are not in `files` are deleted.

        Raises:
            WriteFailed: The system refuses a step.
        """
        try:
            for name in names:
                moved = self.out / name
                if not moved.is_file():
                    continue
                if name in files and self.folder.exists() and not (self.folder / name).exists():
                    os.rename(moved, self.folder / name)
                else:
                    moved.unlink()
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def _rename(self, replaces: Collection[str]) -> None:
        """Give the folder its final name and make that durable. On an error, restore the previous folder."""
        replaced = bool(replaces) and self.out.exists()
        swapped = replaced and self._swap()
        try:
            if not swapped:
                if replaced:
                    os.rename(self.out, self.path / _REPLACED)
                os.rename(self.folder, self.out)
            if replaced:  # what somebody put there since it was looked at comes back with it
                refuse_strangers(self.folder if swapped else self.path / _REPLACED, replaces)
            for folder in (self.out.parent, self.path):
                fsync_folder(folder)
        except BaseException:
            self._undo_rename(swapped)
            raise

    def _swap(self) -> bool:
        """Swap the result with the folder that it replaces. Return False if the file system cannot.

        The journal is renamed first, durably: after a crash it would describe the wrong one of the two folders.
        """
        has_journal = self.journal.exists()
        if has_journal:
            os.rename(self.journal, self.path / _SET_ASIDE)
            fsync_folder(self.path)
        try:
            linux_io.exchange(self.folder, self.out)
        except OSError as error:
            if has_journal:
                os.rename(self.path / _SET_ASIDE, self.journal)
            if error.errno in _CANNOT_EXCHANGE:
                return False
            raise
        return True

    def _undo_rename(self, swapped: bool) -> None:
        if swapped:
            linux_io.exchange(self.folder, self.out)
            if (self.path / _SET_ASIDE).exists():
                os.rename(self.path / _SET_ASIDE, self.journal)
            return
        if not self.folder.exists():
            os.rename(self.out, self.folder)
        if (self.path / _REPLACED).exists():
            os.rename(self.path / _REPLACED, self.out)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if error is not None and self._can_resume() and not isinstance(error, SourceChanged | RanksThere):
            if not isinstance(error, OtherRun | OutputNotEmpty):
                error.add_note(f"Finished work is kept in {self.path}: the same command resumes.")
        else:
            with contextlib.suppress(OSError):
                self._clear()
                self._own.remove()
        self._own.release()

    def _can_resume(self) -> bool:
        """Return whether a later run can resume from the staged files."""
        return self.journal.exists() and self.folder.exists()

    def _clear(self) -> None:
        """Remove everything in the staging folder. The journal goes first, durably, because it describes the rest."""
        if self.journal.exists():
            self.journal.unlink()
            fsync_folder(self.path)
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != MARKER:
                entry.unlink()
