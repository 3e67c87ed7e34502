"""Whether a folder can be the output: not the input, not somebody's, and with room for it; and small files."""

import os
import shutil
from pathlib import Path

from dsv4_shard.errors import NotEnoughDisk, OutputError, OutputInsideInput, OutputNotEmpty, WriteFailed

_ALIKE_CHARS = 20


def check_output(out: Path, source_root: Path | None, overwrite: bool, joins: bool = False) -> None:
    """Refuse an output that is the input, holds it or lies in it, or that something else already occupies.

    `source_root` is the input's folder, if it is in one. With `joins` the output may be a result of other ranks. Raises
    OutputInsideInput, OutputNotEmpty or OutputError.
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
    """Raise NotEnoughDisk where the file system of `out` has less than `needed` bytes free."""
    free = free_bytes(out)
    if free < needed:
        raise NotEnoughDisk(
            f"{out}: needs {needed:,} bytes, the file system has {free:,} free ({needed - free:,} missing)",
            hint="Write a node's share (--ranks 0-7), or choose another file system.",
        )


def free_bytes(out: Path) -> int:
    """Bytes free for this user where `out` will be."""
    return shutil.disk_usage(plain(out).parent).free


def plain(out: Path) -> Path:
    """`out` with a name of its own, also where it is given as `.` or ends in `..`."""
    return Path(os.path.abspath(out))


def write_text(path: Path, text: str) -> None:
    """Write a small file, which appears only when it is complete.

    Raises OutputNotEmpty where the name is that of a file of another kind: a checkpoint's, say. Raises WriteFailed.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a pipe or a terminal
            return
        if path.exists() and not _is_alike(path, text):
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


def _is_alike(path: Path, text: str) -> bool:
    """Whether a file is empty, or begins as a text does: plans and pages of ours do so alike."""
    beginning = text[:_ALIKE_CHARS].encode()
    with path.open("rb") as file:
        there = file.read(len(beginning))
    return there in (b"", beginning)


MANIFEST_NAME = "manifest.json"
