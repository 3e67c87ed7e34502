"""Checks on the output folder (not the input, not occupied, enough space), and atomic writes of small files."""

import os
import shutil
from pathlib import Path

from dsv4_shard.errors import NotEnoughDisk, OutputError, OutputInsideInput, OutputNotEmpty, WriteFailed

MANIFEST_NAME = "manifest.json"

_SAME_BEGINNING_CHARS = 20


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
    if not out.is_symlink() and out.is_dir() and out.is_mount():
        raise OutputError(f"{out}: a mount point cannot be replaced", hint=f"Name a folder in it: {out / 'shards'}")
    if source_root is not None:
        _check_apart(out, source_root)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: not a folder", hint="Choose a name that is free.")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder", hint=f"Make it first: mkdir -p {out.parent}")
    if out.is_dir() and any(out.iterdir()):
        if not (overwrite or joins):
            raise OutputNotEmpty(f"{out}: not empty", hint="Choose another folder, or replace it with --overwrite.")
        if not (out / MANIFEST_NAME).is_file():
            done = "overwritten" if overwrite else "joined"
            raise OutputNotEmpty(
                f"{out}: holds no {MANIFEST_NAME}, so it was not made by dsv4-shard and is not {done}",
                hint="Choose another folder, or empty this one yourself.",
            )


def _check_apart(out: Path, source_root: Path) -> None:
    target, source = out.resolve(), source_root.resolve()
    if target == source or target.is_relative_to(source) or source.is_relative_to(target):
        relation = "is" if target == source else "lies in" if target.is_relative_to(source) else "holds"
        raise OutputInsideInput(f"{out}: the output {relation} the checkpoint {source_root}")


def check_room(out: Path, needed: int) -> None:
    """Raise NotEnoughDisk if the file system of `out` has fewer than `needed` bytes free."""
    free = free_bytes(out)
    if free < needed:
        raise NotEnoughDisk(
            f"{out}: needs {needed:,} bytes, the file system has {free:,} free ({needed - free:,} missing)",
            hint="Write a node's share (--ranks 0-7), or choose another file system.",
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
                f"{path}: there already, and no such file as would be written", hint="Choose a name that is free."
            )
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise WriteFailed(f"{path}: {error.strerror}") from error


def _begins_alike(path: Path, text: str) -> bool:
    """Return whether a file is empty or begins like `text`. All plans begin alike, and so do all HTML pages."""
    beginning = text[:_SAME_BEGINNING_CHARS].encode()
    with path.open("rb") as file:
        existing = file.read(len(beginning))
    return existing in (b"", beginning)
