"""Files of a checkpoint in this machine's Hub cache: those that nobody checked, and copies that cannot be right."""

import contextlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dsv4_shard.sources.base import Source

_SHA256 = re.compile(r"[0-9a-f]{64}")


def unchecked_copies(source: Source, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are read from the Hub cache, and whose SHA-256 nobody compared with the Hub's."""
    verified = set(source.sha256_verified)
    return [name for name in names if name not in verified and _blob(source.original(name)) is not None]


def remove_bad_copies(folder: Path, sizes: Mapping[str, int]) -> list[str]:
    """Remove the files in a snapshot of the Hub cache that do not have their size, and return their names.

    huggingface_hub takes a file that is there for the right one, and would not fetch it again.
    """
    bad = []
    for name, nbytes in sizes.items():
        blob = _blob(folder / name)
        with contextlib.suppress(OSError):
            if blob is not None and blob.stat().st_size != nbytes:
                blob.unlink()
                (folder / name).unlink()
                bad.append(name)
    return bad


def _blob(path: Path | None) -> Path | None:
    """Return the cache's file behind a name in a snapshot; None for any other file."""
    if path is None or not path.is_symlink():
        return None
    blob = path.resolve()
    return blob if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None
