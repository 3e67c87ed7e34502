"""Verifies the SHA-256 of files that are fetched completely, while they stream."""

import hashlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dsv4_shard.errors import DamagedTransfer
from dsv4_shard.sources.prefetch import BLOCK_BYTES, MAX_ASIDE_BYTES, FetchRange
from dsv4_shard.storage import default_workers

_BACKLOG_BYTES = MAX_ASIDE_BYTES + 4 * BLOCK_BYTES
"""Bytes fetched and not yet hashed at which threads block while another one hashes. Reading does not free them."""


class Sha256Check:
    """Hashes the files whose blocks are all fetched, in the order of their bytes. A `prefetch.Watcher`.

    `passed` names the files whose SHA-256 was verified.
    """

    def __init__(self, sha256: Mapping[str, str], headers: Mapping[str, bytes], nbytes: Mapping[str, int]) -> None:
        """Each argument maps file names: to the expected SHA-256, to the first bytes, fetched earlier, to the size."""
        self._sha256, self._headers, self._nbytes = sha256, headers, nbytes
        self._hashes: dict[str, _OrderedHash] = {}
        self.passed: list[str] = []

    def expect(self, blocks: list[FetchRange]) -> None:
        """Start hashing the files that these blocks cover from their headers to their ends, roughly in file order."""
        by_file: dict[str, list[FetchRange]] = {}
        for block in blocks:
            by_file.setdefault(block.file, []).append(block)
        for file, own in by_file.items():
            if file in self._sha256 and _covers(own, len(self._headers[file]), self._nbytes[file]):
                self._hashes[file] = _OrderedHash(self._headers[file])

    def take(self, block: FetchRange, data: memoryview) -> None:
        """Hash a block once the bytes before it are hashed. Raises DamagedTransfer if a complete file differs."""
        ordered = self._hashes.get(block.file)
        if ordered is None or ordered.take(block.start, data) != self._nbytes[block.file]:
            return
        del self._hashes[block.file]
        _compare(block.file, ordered.hexdigest(), self._sha256[block.file])
        self.passed.append(block.file)


def check_downloads(folder: Path, sha256: Mapping[str, str]) -> None:
    """Verify the SHA-256 of files that were just downloaded into a cache's folder.

    Raises DamagedTransfer for a file that differs, and removes it first, so that no later run trusts it.
    """

    def check(name: str, expected: str) -> None:
        path = folder / name
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        _compare(name, found, expected)

    with ThreadPoolExecutor(default_workers()) as pool:
        list(pool.map(check, sha256.keys(), sha256.values()))


def _compare(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise DamagedTransfer(f"{name}: the received bytes have SHA-256 {found}, the repository lists {expected}")


def _covers(blocks: list[FetchRange], start: int, stop: int) -> bool:
    """Return whether blocks cover `[start, stop)` exactly once, and nearly in order.

    Nearly means that at most MAX_ASIDE_BYTES come before bytes that precede them in the file.
    """
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
        if backlog > MAX_ASIDE_BYTES:
            return False
    return start == stop and not waiting


class _OrderedHash:
    """A SHA-256 over bytes that arrive in any order.

    The thread that delivers the next bytes in order hashes them, plus any buffered ones. If hashing falls behind, other
    threads block.
    """

    def __init__(self, header: bytes) -> None:
        self._hash = hashlib.sha256(header)
        self._waiting: dict[int, memoryview] = {}
        self._backlog = 0
        self._changed = threading.Condition()
        self._is_hashing = False
        self._position = len(header)  # bytes hashed or being hashed

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def take(self, start: int, data: memoryview) -> int | None:
        """Buffer the data that begins at byte `start`, and hash all bytes that are next in order.

        Returns the number of bytes hashed when this thread stopped, so that one thread alone learns of the last byte.
        None if it hashed nothing: another thread is hashing, or earlier bytes are missing.
        """
        with self._changed:
            self._waiting[start] = data
            self._backlog += len(data)
            while self._is_hashing and self._backlog > _BACKLOG_BYTES:
                self._changed.wait()
            if self._is_hashing or self._position not in self._waiting:
                return None
            self._is_hashing = True
        while not isinstance(following := self._pop(), int):
            self._hash.update(following)
        return following

    def _pop(self) -> memoryview | int:
        """Return the next bytes to hash. If they are not there yet, end the hashing and return the bytes hashed."""
        with self._changed:
            following = self._waiting.pop(self._position, None)
            if following is None:
                self._is_hashing = False
            else:
                self._position += len(following)
                self._backlog -= len(following)
            self._changed.notify_all()
            return self._position if following is None else following
