"""Checks on the output folder (not the input, not occupied, enough space), and atomic writes of small files."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePath

from dsv4_shard.errors import NotEnoughDisk, OutputError, OutputInsideInput, OutputNotEmpty, WriteFailed
from dsv4_shard.text.shell import shell_word
from dsv4_shard.text.units import size

MANIFEST_NAME = "manifest.json"

SIGNATURE_NAME = "model.sig"
"""The default name of a signature, as model_signing has it."""

_SAME_BEGINNING_CHARS = 20

_PREFIX_CHARS = 100
"""Characters of a file's name in that of its temporary file, whose length is limited."""

_STRANGERS_SHOWN = 3


def check_output(out: Path, source_root: Path | None, overwrite: bool, joins: bool = False) -> None:
    """Raise an error if the output folder cannot be used.

    Args:
        out: The output folder. It may not exist yet, but its parent must.
        source_root: The folder that holds the input, None if the input is remote.
        overwrite: Whether an existing result may be replaced.
        joins: Whether the output may be a result that holds other ranks.

    Raises:
        OutputInsideInput: Output and input are the same folder, or one contains the other.
        OutputNotEmpty: The folder holds something that may not be replaced or joined.
        OutputError: The path is a mount point or not a folder, or its parent does not exist.
    """
    try:
        _check_output(out, source_root, overwrite, joins)
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError up to Python 3.12
        raise OutputError(f"{out}: {getattr(error, 'strerror', None) or 'a loop of links'}") from None


def _check_output(out: Path, source_root: Path | None, overwrite: bool, joins: bool) -> None:
    if not out.is_symlink() and out.is_dir() and out.is_mount():
        raise OutputError(f"{out}: a mount point cannot be replaced", hint=f"Name a folder in it: {out / 'shards'}")
    if source_root is not None:
        _check_apart(out, source_root)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: not a folder", hint="Choose another name.")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder", hint=f"Make it first: `mkdir -p {shell_word(out.parent)}`.")
    if out.is_dir() and any(out.iterdir()):
        is_result = (out / MANIFEST_NAME).is_file()
        if not (overwrite or joins):
            way = "replace it with --overwrite" if is_result else "empty this one"
            raise OutputNotEmpty(f"{out}: not empty", hint=f"Choose another folder, or {way}.")
        if not is_result:
            done = "overwritten" if overwrite else "joined"
            raise OutputNotEmpty(
                f"{out}: holds no {MANIFEST_NAME}, so dsv4-shard did not make it; not {done}",
                hint="Choose another folder, or empty this one.",
            )


def _check_apart(out: Path, source_root: Path) -> None:
    target, source = out.resolve(), source_root.resolve()
    if target == source or target.is_relative_to(source) or source.is_relative_to(target):
        relation = "is" if target == source else "lies in" if target.is_relative_to(source) else "holds"
        raise OutputInsideInput(f"{out}: the output {relation} the checkpoint {source_root}")


def refuse_strangers(folder: Path, known: Collection[str]) -> None:
    """Raise OutputNotEmpty if a folder holds anything but regular files called `known`, in it or in its folders.

    Links are not followed, and they are strangers too.
    """
    found = list(islice(_strangers(folder, known, set(folders_of(known))), _STRANGERS_SHOWN + 1))
    if found:
        names = ", ".join(found[:_STRANGERS_SHOWN]) + (" and more" if len(found) > _STRANGERS_SHOWN else "")
        raise OutputNotEmpty(
            f"{folder}: not overwritten, because dsv4-shard did not write {names}",
            hint="Move it away, or choose another folder.",
        )


def folders_of(names: Iterable[str]) -> list[str]:
    """Return every folder that files called `names` lie in, the innermost first; not the one that holds them all."""
    found = {parent.as_posix() for name in names for parent in PurePath(name).parents} - {"."}
    return sorted(found, key=lambda folder: (-folder.count("/"), folder))


def _strangers(folder: Path, known: Collection[str], inner: Collection[str], within: str = "") -> Iterator[str]:
    with os.scandir(folder / within) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            name = within + entry.name
            if name in inner and entry.is_dir(follow_symlinks=False):
                yield from _strangers(folder, known, inner, f"{name}/")
            elif name not in known or not entry.is_file(follow_symlinks=False):
                yield name + "/" * entry.is_dir(follow_symlinks=False)


def check_writable(out: Path) -> None:
    """Raise WriteFailed if this user cannot create `out`."""
    parent = plain(out).parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WriteFailed(f"{parent}: cannot be written by this user", hint="Choose a folder that can be written.")


def check_room(out: Path, needed: int) -> None:
    """Raise NotEnoughDisk if the file system of `out` has fewer than `needed` bytes free."""
    free = free_bytes(out)
    if free < needed:
        raise NotEnoughDisk(
            f"{out}: needs {size(needed)}; {size(free)} are free on the file system of {plain(out).parent}: "
            f"{size(needed - free)} short",
            hint="Write a node's share (--ranks 0-7; --dry-run lists what each needs), or choose another file system.",
        )


def free_bytes(out: Path) -> int:
    """Return the bytes that this user may still write to the file system of `out`."""
    return shutil.disk_usage(plain(out).parent).free


def plain(out: Path) -> Path:
    """Return `out` as an absolute path without `.` and `..`, so that it has a name. Links are not resolved."""
    return Path(os.path.abspath(out))


def write_text(path: Path, text: str) -> None:
    """Write a small text file (UTF-8) atomically: it appears complete or not at all.

    Raises OutputNotEmpty if the name belongs to a file with another kind of content (of a checkpoint, for example), and
    WriteFailed if the system refuses.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a pipe or a terminal
            return
        if path.exists() and not _begins_alike(path, text):
            raise OutputNotEmpty(
                f"{path}: exists already, and not a file of the kind to write", hint="Choose another name."
            )
        _replace(path, text.encode())
    except OSError as error:
        raise WriteFailed(f"{path}: {error.strerror}") from error


def write_new(path: Path, content: bytes) -> None:
    """Write a small file that is not there yet, durably. Raises OutputNotEmpty if it is, and WriteFailed."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise OutputNotEmpty(f"{path}: exists already, not replaced") from None
    except OSError as error:
        raise WriteFailed(f"{path}: {error.strerror}") from error
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        if isinstance(error, OSError):
            raise WriteFailed(f"{path}: {error.strerror}") from error
        raise


def _replace(path: Path, content: bytes) -> None:
    """Put `content` in the place of `path` at once. Its temporary name cannot be foreseen, so nobody can link it."""
    scratch = path.with_name(f".{path.name[:_PREFIX_CHARS]}.{secrets.token_hex(8)}")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with open(fd, "wb") as file:
            file.write(content)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise


def _begins_alike(path: Path, text: str) -> bool:
    """Return whether a file is empty or begins like `text`. All plans begin alike, and so do all HTML pages."""
    beginning = text[:_SAME_BEGINNING_CHARS].encode()
    with path.open("rb") as file:
        existing = file.read(len(beginning))
    return existing in (b"", beginning)
