"""Files that a run fetches whole, held against the SHA-256 that their repository gives for them."""

import hashlib
import threading
from collections.abc import Mapping

from dsv4_shard.errors import DamagedTransfer
from dsv4_shard.readahead import Block


class Intact:
    """Hashes files whose blocks all come, in the order of their bytes. See `readahead.Watcher`.

    `sha256` has the digests due, `heads` the files' beginnings, which were fetched before; `nbytes` their sizes.
    `passed` names the files that are what they should be.
    """

    def __init__(self, sha256: Mapping[str, str], heads: Mapping[str, bytes], nbytes: Mapping[str, int]) -> None:
        self._sha256, self._heads, self._nbytes = sha256, heads, nbytes
        self._running: dict[str, _Running] = {}
        self.passed: list[str] = []

    def expect(self, blocks: list[Block]) -> None:
        """Begin with the files that these blocks cover from their heads to their ends."""
        edges: dict[str, int] = {}
        for block in sorted(blocks, key=lambda block: block.start):
            edge = edges.get(block.file, len(self._heads[block.file]))
            edges[block.file] = block.stop if block.start == edge else -1
        for file, edge in edges.items():
            if edge == self._nbytes[file] and file in self._sha256:
                self._running[file] = _Running(self._heads[file])

    def take(self, block: Block, data: memoryview) -> None:
        """Hash a block, when those before it were. Raises DamagedTransfer at the last one of a file that differs."""
        running = self._running.get(block.file)
        if running is None or not running.take(block.start, data) or running.edge < self._nbytes[block.file]:
            return
        if self._running.pop(block.file, None) is None:
            return  # another thread saw its end as well
        found, due = running.hexdigest(), self._sha256[block.file]
        if found != due:
            raise DamagedTransfer(f"{block.file}: SHA-256 {found} of the bytes that came, the repository says {due}")
        self.passed.append(block.file)


class _Running:
    """A hash that gets its bytes in any order; `edge` is how far it is."""

    def __init__(self, head: bytes) -> None:
        self._hash = hashlib.sha256(head)
        self._waiting: dict[int, memoryview] = {}
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self.edge = len(head)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def take(self, start: int, data: memoryview) -> bool:
        """Note data that begins at byte `start`, and hash all that are next; False where another thread does that."""
        with self._lock:
            self._waiting[start] = data
        while self._turn.acquire(blocking=False):
            try:
                while (data_next := self._pop()) is not None:
                    self._hash.update(data_next)
                    self.edge += len(data_next)
            finally:
                self._turn.release()
            with self._lock:
                if self.edge not in self._waiting:  # nothing came between the last look and the release
                    return True
        return False

    def _pop(self) -> memoryview | None:
        with self._lock:
            return self._waiting.pop(self.edge, None)
