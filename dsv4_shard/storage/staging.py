"""Staging, fsync, rename: a folder appears under its final name when all of it is durable, or not at all.

Everything is written into `.NAME.partial/result` beside the target. `.NAME.partial` is locked while a run is alive, and
holds the run's journal: what a run that ended early leaves there is the next one's to go on from, or to throw away. The
manifest is written last, then the result is renamed: write, fsync(files), fsync(folder), rename, fsync(parent), since
rename alone is not durable on every file system.

Shares of ranks have a place each, `.NAME.ranks-8-15.partial`. The first one to end becomes the folder; the files of
each further one are moved into it, and its manifest is replaced last, in one step. `.NAME.lock` is held meanwhile.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from dsv4_shard.errors import OtherRun, OutputNotEmpty, RanksThere, SourceChanged, WriteFailed
from dsv4_shard.storage import linux_io as syscalls
from dsv4_shard.storage.locks import MARKER, LockedFolder, locked
from dsv4_shard.storage.output_folder import MANIFEST_NAME, plain
from dsv4_shard.storage.staged_file import StagedFile, fsync_folder

_RESULT = "result"

_REPLACED = "replaced"

_JOURNAL = "journal"

_SET_ASIDE = "journal.set-aside"


class Staging:
    """A folder in the making, locked; `share` names the ranks that it is for, empty: all. Use as a context.

    What is not committed at its end is removed, unless an error ended it and a journal says what a later run can use.
    """

    def __init__(self, out: Path, share: str = "") -> None:
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
                os.rename(self.path / _REPLACED, self.out)  # a run was killed between two renames
        except OSError as error:
            self._own.release()
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error
        return self

    def begin(self) -> None:
        """Throw away what an earlier run left, and begin with nothing. Raises WriteFailed."""
        try:
            self._clear()
            self.folder.mkdir()
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def holds(self, name: str, nbytes: int, original: Path | None) -> bool:
        """Whether an earlier run left this file as `create` made it, or as a link to `original`, if that is given."""
        try:
            there = os.lstat(self.folder / name)
        except OSError:
            return False
        ours = there.st_nlink == 1 or (original is not None and self.links_to(name, original))
        return stat.S_ISREG(there.st_mode) and there.st_size == nbytes and ours

    def links_to(self, name: str, original: Path) -> bool:
        """Whether a staged file is a link to a file outside."""
        try:
            return (self.folder / name).samefile(original)
        except OSError:
            return False

    def keep_only(self, files: Container[str]) -> None:
        """Remove all else that an earlier run left: what it made at its end is made again. Raises WriteFailed."""
        try:
            for path in self._staged():
                if path.relative_to(self.folder).as_posix() not in files:
                    path.unlink()
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def nbytes_on_disk(self) -> int:
        """Bytes that the file system has given to what is staged already, links to files outside apart."""
        found = [os.lstat(path) for path in self._staged()]
        return sum(there.st_blocks * 512 for there in found if there.st_nlink == 1)

    def _staged(self) -> Iterator[Path]:
        return (path for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir())

    def create(self, name: str, nbytes: int) -> StagedFile:
        """A new file of `nbytes`, its blocks reserved where the file system can. Raises WriteFailed."""
        path = self.folder / name
        try:
            if path.parent != self.folder:
                path.parent.mkdir(exist_ok=True)
            file = self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                syscalls.fallocate(file.fd, max(nbytes, 1))
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise
            os.ftruncate(file.fd, nbytes)
        except OSError as error:
            raise WriteFailed(f"{path}: cannot make a file of {nbytes} bytes: {error.strerror}") from error
        return file

    def reopen(self, name: str) -> StagedFile:
        """A file that an earlier run created, to be written further. Raises WriteFailed."""
        try:
            return self._open(name, os.O_RDWR | os.O_NOFOLLOW)
        except OSError as error:
            raise WriteFailed(f"{self.folder / name}: {error.strerror}") from error

    def _open(self, name: str, flags: int) -> StagedFile:
        file = StagedFile(os.open(self.folder / name, flags | os.O_CLOEXEC, 0o666), self.folder / name)
        self._files[name] = file
        return file

    def adopt(self, name: str, original: Path) -> bool:
        """Make `name` a hard link to a file outside; False where it cannot be one, and is to be created."""
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
            self._open(twin, os.O_RDWR)
        except OSError as error:
            raise WriteFailed(f"{self.folder / twin}: {error.strerror}") from error

    def write_file(self, name: str, content: bytes) -> None:
        """A small file, whole."""
        self.create(name, len(content)).write(0, memoryview(content))

    def settle(self) -> None:
        """Make files and folders durable, as far as they are there. Raises OSError."""
        for file in self._files.values():
            file.fsync()
        inner = {(self.folder / name).parent for name in self._files} - {self.folder}
        for folder in (*sorted(inner), self.folder, self.path, self.path.parent):
            fsync_folder(folder)

    @contextmanager
    def out_locked(self) -> Iterator[None]:
        """Nobody else changes what stands under the final name meanwhile. Raises WriteFailed."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.out.parent / f".{self.out.name}.lock"))
            except OSError as error:
                raise WriteFailed(f"{self.out}: cannot be locked: {error.strerror}") from error
            yield

    @contextmanager
    def ending(self) -> Iterator[None]:
        """All that is staged is durable, and `out_locked`: for `commit` or `join`. Raises WriteFailed."""
        try:
            self.settle()
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error
        with self.out_locked():
            yield

    def commit(self, manifest: bytes, overwrite: bool) -> None:
        """Add the manifest, and give the folder its final name. Raises WriteFailed."""
        try:
            self._seal(manifest)
            self._rename(overwrite)
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def _seal(self, manifest: bytes) -> None:
        """Write the manifest, durably. Raises OSError."""
        self.write_file(MANIFEST_NAME, manifest)
        self._files[MANIFEST_NAME].fsync()
        fsync_folder(self.folder)

    def join(self, manifest: bytes, new: Mapping[str, str]) -> None:
        """Move staged files into the result that has the final name, and put `manifest` in its manifest's place.

        `new` has the files to be moved; where one is named with a file of the result, it is that one, and becomes a
        link to it. The manifest is replaced last and in one step: until then the result is what it was. Raises
        WriteFailed.
        """
        try:
            self._seal(manifest)
            for name, twin in new.items():
                (self.out / name).parent.mkdir(exist_ok=True)
                if not (twin and self._link_there(twin, name)):
                    os.rename(self.folder / name, self.out / name)
            inner = sorted({Path(name).parent for name in new} - {Path()})
            for root in (self.out, self.folder):
                for folder in (*inner, Path()):
                    fsync_folder(root / folder)
            os.rename(self.folder / MANIFEST_NAME, self.out / MANIFEST_NAME)
            for root in (self.out, self.folder):
                fsync_folder(root)
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error

    def _link_there(self, twin: str, name: str) -> bool:
        """Another name for a file of the result; False where the file system has no links."""
        try:
            os.link(self.out / twin, self.out / name)
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise
        return True

    def take_back(self, files: Container[str], names: Iterable[str]) -> None:
        """Undo a `join` that was killed: those of `names` that it moved are staged again, or gone if not of `files`.

        `names` must not be the result's. To be called with `out_locked`. Raises WriteFailed.
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

    def _rename(self, overwrite: bool) -> None:
        """Give the folder its final name, durably, or leave what was there."""
        replaced = overwrite and self.out.exists()
        swapped = replaced and self._swap()
        try:
            if not swapped:
                if replaced:
                    os.rename(self.out, self.path / _REPLACED)
                os.rename(self.folder, self.out)
            for folder in (self.out.parent, self.path):
                fsync_folder(folder)
        except BaseException:
            self._undo_rename(swapped)
            raise

    def _swap(self) -> bool:
        """Swap the result and the folder that it replaces; False where the file system cannot.

        Meanwhile the journal has another name, durably: after a crash it would speak for the wrong one of the two.
        """
        has_journal = self.journal.exists()
        if has_journal:
            os.rename(self.journal, self.path / _SET_ASIDE)
            fsync_folder(self.path)
        try:
            syscalls.exchange(self.folder, self.out)
        except OSError as error:
            if has_journal:
                os.rename(self.path / _SET_ASIDE, self.journal)
            if error.errno in _CANNOT_EXCHANGE:
                return False
            raise
        return True

    def _undo_rename(self, swapped: bool) -> None:
        if swapped:
            syscalls.exchange(self.folder, self.out)
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
        if error is not None and self._is_of_use() and not isinstance(error, SourceChanged | RanksThere):
            if not isinstance(error, OtherRun | OutputNotEmpty):
                error.add_note(f"What is done is kept in {self.path}: the same command goes on from there.")
        else:
            with contextlib.suppress(OSError):
                self._clear()
                self._own.remove()
        self._own.release()

    def _is_of_use(self) -> bool:
        """Whether a later run can go on from what is staged."""
        return self.journal.exists() and self.folder.exists()

    def _clear(self) -> None:
        """Remove all that is staged; the journal first, durably, since it speaks for the rest."""
        if self.journal.exists():
            self.journal.unlink()
            fsync_folder(self.path)
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != MARKER:
                entry.unlink()


_CANNOT_RESERVE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""The file system reserves nothing, which is no reason to stop."""

_CANNOT_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV)
"""The file system has no hard links, or no more for this file, or none for files of others; or it is another one."""

_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""The file system cannot swap two names in one step."""
