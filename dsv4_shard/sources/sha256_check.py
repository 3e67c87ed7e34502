"""Files that a run fetches whole, held against the SHA-256 that their repository gives for them."""

import hashlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dsv4_shard.errors import DamagedTransfer
from dsv4_shard.sources.prefetch import BLOCK_BYTES, CONNECTIONS, HELD_BYTES, FetchRange
from dsv4_shard.storage.runtime import default_workers

_BACKLOG_BYTES = HELD_BYTES + 2 * CONNECTIONS * BLOCK_BYTES
"""Fetched and not yet hashed: more than can be there without the bytes that are next."""


class Sha256Check:
    """Hashes files whose blocks all come, in the order of their bytes. See `readahead.Watcher`.

    `sha256` has the digests due, `heads` the files' beginnings, which were fetched before; `nbytes` their sizes.
    `passed` names the files that are what they should be.
    """

    def __init__(self, sha256: Mapping[str, str], heads: Mapping[str, bytes], nbytes: Mapping[str, int]) -> None:
        self._sha256, self._heads, self._nbytes = sha256, heads, nbytes
        self._running: dict[str, _Running] = {}
        self.passed: list[str] = []

    def expect(self, blocks: list[FetchRange]) -> None:
        """Begin with the files that these blocks cover from their heads to their ends, in about the order of bytes."""
        by_file: dict[str, list[FetchRange]] = {}
        for block in blocks:
            by_file.setdefault(block.file, []).append(block)
        for file, own in by_file.items():
            if file in self._sha256 and _covers(own, len(self._heads[file]), self._nbytes[file]):
                self._running[file] = _Running(self._heads[file])

    def take(self, block: FetchRange, data: memoryview) -> None:
        """Hash a block, when those before it were. Raises DamagedTransfer at the last one of a file that differs."""
        running = self._running.get(block.file)
        if running is None or not running.take(block.start, data) or running.edge < self._nbytes[block.file]:
            return
        del self._running[block.file]
        found, due = running.hexdigest(), self._sha256[block.file]
        _compare(block.file, found, due)
        self.passed.append(block.file)


def check_downloads(folder: Path, sha256: Mapping[str, str]) -> None:
    """Hold files of a cache's folder, which were just fetched, against their digests.

    Raises DamagedTransfer for one that differs, which is removed first: nobody is to take it for sound later.
    """

    def check(name: str, due: str) -> None:
        path = folder / name
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != due:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        _compare(name, found, due)

    with ThreadPoolExecutor(default_workers()) as pool:
        list(pool.map(check, sha256.keys(), sha256.values()))


def _compare(name: str, found: str, due: str) -> None:
    if found != due:
        raise DamagedTransfer(f"{name}: SHA-256 {found} of the bytes that came, the repository says {due}")


def _covers(blocks: list[FetchRange], start: int, stop: int) -> bool:
    """Whether blocks cover `[start, stop)`, none of the bytes twice, and few of them long before those before them."""
    waiting: dict[int, int] = {}
    backlog = 0
    for block in blocks:
        if block.start in waiting:
            return False
        waiting[block.start] = block.nbytes
        backlog += block.nbytes
        while (nbytes := waiting.pop(start, None)) is not None:
            start += nbytes
            backlog -= nbytes
        if backlog > HELD_BYTES:
            return False
    return start == stop and not waiting


class _Running:
    """A hash that gets its bytes in any order; `edge` is how far it is.

    Who brings the next bytes hashes them, and those that others brought meanwhile. Where that is slower than the
    network, those who bring more wait.
    """

    def __init__(self, head: bytes) -> None:
        self._hash = hashlib.sha256(head)
        self._waiting: dict[int, memoryview] = {}
        self._backlog = 0
        self._changed = threading.Condition()
        self._is_hashing = False
        self.edge = len(head)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def take(self, start: int, data: memoryview) -> bool:
        """Note data that begins at byte `start`, and hash what is next, unless another thread does: then False."""
        with self._changed:
            self._waiting[start] = data
            self._backlog += len(data)
            while self._is_hashing and self._backlog > _BACKLOG_BYTES:
                self._changed.wait()
            if self._is_hashing or self.edge not in self._waiting:
                return False
            self._is_hashing = True
        while (following := self._pop()) is not None:
            self._hash.update(following)
        return True

    def _pop(self) -> memoryview | None:
        """The bytes that follow those that were hashed; where there are none, the hashing ends."""
        with self._changed:
            following = self._waiting.pop(self.edge, None)
            if following is None:
                self._is_hashing = False
            else:
                self.edge += len(following)
                self._backlog -= len(following)
            self._changed.notify_all()
            return following
