"""Config, index and headers of a remote checkpoint: fetched in parallel, cached per commit."""

import contextlib
import json
import os
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from dsv4_shard.errors import CheckpointTooLarge, ReadFailed
from dsv4_shard.limits import CACHED, HEADER, HEADERS, HUB_ANSWER, INDEX, NAME, UNPACKED
from dsv4_shard.sources.base import COMMIT
from dsv4_shard.sources.checkpoint_files import (
    INDEX_FILE,
    LIMITS,
    SINGLE_FILE,
    is_plain_name,
)
from dsv4_shard.sources.deadline import for_each
from dsv4_shard.sources.known_repos import headers_folder
from dsv4_shard.sources.prefetch import CONNECTIONS
from dsv4_shard.sources.remote import Listed, RemoteSource
from dsv4_shard.storage import read_regular
from dsv4_shard.tensors.header import LENGTH_BYTES
from dsv4_shard.text.archive import BadArchive, read_archive
from dsv4_shard.text.strict_json import BadJson, parse_json

_MIN_FIRST_BYTES = 64 << 10
"""Smallest first request of a file."""

_ENTRY_BYTES = 128
"""Estimated bytes of a tensor's header entry, without its name."""

_LISTING = "tree.json"
"""Entry with the files of a commit, those in folders too; `listing.json` of earlier versions had only the others."""

_SECONDS_REMEMBERED = 3600
"""Seconds for which the commit of a branch is assumed to be unchanged."""


def read_small(source: RemoteSource) -> dict[str, bytes]:
    """Return the bytes of config.json and of the index, if they exist and do not exceed their limits."""
    sizes = source.sizes()
    names = [name for name, limit in LIMITS.items() if name in sizes and sizes[name] <= limit.nbytes]
    return _in_parallel(lambda name: _bytes(source, name, 0, sizes[name]), names)


def wanted_headers(source: RemoteSource, small: Mapping[str, bytes]) -> dict[str, int]:
    """Return name → estimated header bytes, of each weight file that the index names and the listing has."""
    weight_map = weight_map_of(small[INDEX_FILE]) if INDEX_FILE in small else {"": SINGLE_FILE}
    expected = Counter[str]()
    for tensor, name in weight_map.items():
        expected[name] += len(tensor) + _ENTRY_BYTES
    return {name: expected[name] for name in sorted(expected) if name in source.listing and is_plain_name(name)}


def read_headers(source: RemoteSource, wanted: Mapping[str, int]) -> dict[str, bytes]:
    """Return name → the exact bytes of the file's header with its length. `wanted` has the estimated header bytes."""
    budget = _Budget(source.label)
    return _in_parallel(lambda name: _header(source, name, wanted[name], budget), list(wanted))


def weight_map_of(index: bytes) -> dict[str, str]:
    """Return tensor → file of an index. Empty if the index is malformed; later checks report that."""
    try:
        document = parse_json(index, INDEX)
    except BadJson:
        return {}
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    return {k: v for k, v in weight_map.items() if isinstance(v, str)} if isinstance(weight_map, dict) else {}


def _in_parallel(read: Callable[[str], bytes], names: list[str]) -> dict[str, bytes]:
    """Return name → what `read` gives. Its first error is raised, and no other request is waited for."""
    found: dict[str, bytes] = {}
    for_each(names, lambda name: found.update({name: read(name)}), CONNECTIONS)
    return {name: found[name] for name in names}


class _Budget:
    """The bytes of headers that may still be read, by all threads."""

    def __init__(self, label: str) -> None:
        self._label, self._left, self._lock = label, HEADERS.nbytes, threading.Lock()

    def take(self, nbytes: int) -> None:
        """Take bytes. Raises CheckpointTooLarge if so many are not left."""
        with self._lock:
            self._left -= nbytes
            if self._left < 0:
                raise CheckpointTooLarge(f"{self._label}: headers of over {HEADERS.nbytes:,} bytes in all")


def _header(source: RemoteSource, name: str, expected: int, budget: _Budget) -> bytes:
    """Return a file's header with its length, in one request if it is not longer than expected, else in two.

    If the length is invalid, the bytes of the first request are returned; later checks report that.
    """
    nbytes = source.listing[name].nbytes
    first = _bytes(source, name, 0, min(nbytes, max(_MIN_FIRST_BYTES, min(HEADER.nbytes, expected + expected // 8))))
    stop = LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little")
    if stop <= len(first) or stop > min(nbytes, LENGTH_BYTES + HEADER.nbytes):
        budget.take(min(stop, len(first)))
        return first[:stop]
    budget.take(stop)
    return first + _bytes(source, name, len(first), stop)


def _bytes(source: RemoteSource, name: str, start: int, stop: int) -> bytes:
    with source.open(name) as file:
        return file.read(start, stop)


@dataclass(frozen=True, slots=True)
class RemoteHeaders:
    """What is known about a remote checkpoint before its weights are read.

    Attributes:
        listing: Name → every file of the commit.
        headers: Name → the file's first bytes: the header of a weight file, a small file completely.
        rebuilt: Whether the headers were serialized from the server's parsed headers, so their bytes may differ.
    """

    listing: Mapping[str, Listed]
    headers: Mapping[str, bytes]
    rebuilt: bool


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder; none if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


class HeaderCache:
    """The on-disk cache of one repository's headers and commits. Errors of the file system are ignored."""

    def __init__(self, endpoint: str, repo_id: str) -> None:
        self._folder = headers_folder(endpoint) / quote(repo_id, safe="")

    def commit_of(self, revision: str, *, within: float = _SECONDS_REMEMBERED) -> str | None:
        """Return the commit of a branch or tag that `remember` stored within the last `within` seconds, else None."""
        path = self._ref(revision)
        try:
            age = time.time() - path.stat().st_mtime
            commit = read_regular(path, NAME).decode()
        except (OSError, ReadFailed, ValueError):
            return None
        return commit if 0 <= age < within and COMMIT.fullmatch(commit) else None

    def remember(self, revision: str, commit: str) -> None:
        """Store the commit of a branch or tag."""
        self._write(self._ref(revision), commit.encode())

    def holds(self, commit: str) -> bool:
        """Return whether the cache has an entry for a commit, readable or not."""
        return self._archive(commit).is_file()

    def commits(self) -> list[str]:
        """Return the commits whose headers are cached."""
        return [name.removesuffix(".zip") for name in names_in(self._folder)]

    def load(self, commit: str) -> RemoteHeaders | None:
        """Return the cached headers of a commit, None if there are none or they cannot be read."""
        try:
            content = read_archive(read_regular(self._archive(commit), CACHED), CACHED, UNPACKED)
            document = parse_json(content.pop(_LISTING), HUB_ANSWER)
            listing = {name: Listed(*entry) for name, entry in document["files"].items()}
            return RemoteHeaders(listing, content, document["rebuilt"])
        except (ReadFailed, BadArchive, ValueError, LookupError, TypeError, AttributeError):
            return None

    def save(self, commit: str, found: RemoteHeaders) -> None:
        """Store the headers of a commit. Failure to save is ignored."""
        document = {"rebuilt": found.rebuilt, "files": found.listing}
        with contextlib.suppress(OSError), tempfile.SpooledTemporaryFile() as packed:
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.writestr(_LISTING, json.dumps(document))
                for name, content in found.headers.items():
                    archive.writestr(name, content)
            packed.seek(0)
            self._write(self._archive(commit), packed.read())

    def _archive(self, commit: str) -> Path:
        return self._folder / f"{commit}.zip"

    def _ref(self, revision: str) -> Path:
        return self._folder / "refs" / quote(revision, safe="")

    def _write(self, path: Path, content: bytes) -> None:
        """Write a file atomically. Failure to write is ignored."""
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(content)
            os.replace(file.name, path)
