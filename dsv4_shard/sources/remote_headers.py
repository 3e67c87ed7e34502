"""Reads what is known of a checkpoint on a server before its weights, in parallel: config, index and headers."""

import contextlib
import json
import os
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from dsv4_shard.sources.base import COMMIT
from dsv4_shard.sources.checkpoint_files import (
    CONFIG_FILE,
    INDEX_FILE,
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    SINGLE_FILE,
    is_plain_name,
)
from dsv4_shard.sources.known_repos import heads_folder
from dsv4_shard.sources.prefetch import CONNECTIONS
from dsv4_shard.sources.remote import Listed, RemoteSource
from dsv4_shard.tensors.header import LENGTH_BYTES, MAX_HEADER_BYTES
from dsv4_shard.text.strict_json import BadJson, parse_json

_LEAST_FIRST_BYTES = 64 << 10

_ENTRY_BYTES = 128
"""What a header has for a tensor, beside its name."""

_LIMITS = {CONFIG_FILE: MAX_CONFIG_BYTES, INDEX_FILE: MAX_INDEX_BYTES}


def read_small(source: RemoteSource) -> dict[str, bytes]:
    """config.json and the index, where they are there and not larger than they may be."""
    sizes = source.sizes()
    names = [name for name, limit in _LIMITS.items() if name in sizes and sizes[name] <= limit]
    return _in_parallel(lambda name: _bytes(source, name, 0, sizes[name]), names)


def wanted_headers(source: RemoteSource, small: Mapping[str, bytes]) -> dict[str, int]:
    """The weight files that an index names, as far as they are there, and about how long their headers are in bytes."""
    weight_map = weight_map_of(small[INDEX_FILE]) if INDEX_FILE in small else {"": SINGLE_FILE}
    expected = Counter[str]()
    for tensor, name in weight_map.items():
        expected[name] += len(tensor) + _ENTRY_BYTES
    return {name: expected[name] for name in sorted(expected) if name in source.listing and is_plain_name(name)}


def read_headers(source: RemoteSource, wanted: Mapping[str, int]) -> dict[str, bytes]:
    """Length and header of each file, byte by byte."""
    return _in_parallel(lambda name: _header(source, name, wanted[name]), list(wanted))


def weight_map_of(index: bytes) -> dict[str, str]:
    """Tensor → file; nothing where the index is not one, which is for the checks to tell."""
    try:
        document = parse_json(index)
    except BadJson:
        return {}
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    return {k: v for k, v in weight_map.items() if isinstance(v, str)} if isinstance(weight_map, dict) else {}


def _in_parallel(read: Callable[[str], bytes], names: list[str]) -> dict[str, bytes]:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def _header(source: RemoteSource, name: str, expected: int) -> bytes:
    """A file's length and header: in one range where it is as long as expected or shorter, else in two.

    Where the length is none that the format allows, what was read: the checks will tell.
    """
    nbytes = source.listing[name].nbytes
    first = _bytes(source, name, 0, min(nbytes, max(_LEAST_FIRST_BYTES, expected + expected // 8)))
    stop = LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little")
    if stop <= len(first) or stop > min(nbytes, LENGTH_BYTES + MAX_HEADER_BYTES):
        return first[:stop]
    return first + _bytes(source, name, len(first), stop)


def _bytes(source: RemoteSource, name: str, start: int, stop: int) -> bytes:
    with source.open(name) as file:
        return file.read(start, stop)


_LISTING = "listing.json"

_SECONDS_REMEMBERED = 3600
"""How long a branch is taken to be where it was."""


@dataclass(frozen=True, slots=True)
class RemoteHeaders:
    """A commit's listing, and whole small files and headers of others; `rebuilt` where headers came parsed."""

    listing: Mapping[str, Listed]
    heads: Mapping[str, bytes]
    rebuilt: bool


class HeaderCache:
    """The cache of one repository at one server."""

    def __init__(self, endpoint: str, repo_id: str) -> None:
        self._folder = heads_folder(endpoint) / quote(repo_id, safe="")

    def commit_of(self, revision: str, *, within: float = _SECONDS_REMEMBERED) -> str | None:
        """Where a branch or tag was when it was last asked for, if that was `within` so many seconds."""
        path = self._ref(revision)
        try:
            age = time.time() - path.stat().st_mtime
            commit = path.read_text()
        except (OSError, ValueError):
            return None
        return commit if 0 <= age < within and COMMIT.fullmatch(commit) else None

    def remember(self, revision: str, commit: str) -> None:
        """Where a branch is now."""
        self._write(self._ref(revision), commit.encode())

    def holds(self, commit: str) -> bool:
        """Whether something was kept of a commit, sound or not."""
        return self._archive(commit).is_file()

    def load(self, commit: str) -> RemoteHeaders | None:
        """What was kept of a commit."""
        try:
            with zipfile.ZipFile(self._archive(commit)) as archive:
                document = json.loads(archive.read(_LISTING))
                listing = {name: Listed(*entry) for name, entry in document["files"].items()}
                heads = {name: archive.read(name) for name in archive.namelist() if name != _LISTING}
                return RemoteHeaders(listing, heads, document["rebuilt"])
        except (OSError, zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError, RuntimeError):
            return None

    def save(self, commit: str, kept: RemoteHeaders) -> None:
        """Keep what was read. Not being able to is no reason to fail."""
        document = {"rebuilt": kept.rebuilt, "files": kept.listing}
        with contextlib.suppress(OSError), tempfile.SpooledTemporaryFile() as packed:
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.writestr(_LISTING, json.dumps(document))
                for name, content in kept.heads.items():
                    archive.writestr(name, content)
            packed.seek(0)
            self._write(self._archive(commit), packed.read())

    def _archive(self, commit: str) -> Path:
        return self._folder / f"{commit}.zip"

    def _ref(self, revision: str) -> Path:
        return self._folder / "refs" / quote(revision, safe="")

    def _write(self, path: Path, content: bytes) -> None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(content)
            os.replace(file.name, path)
