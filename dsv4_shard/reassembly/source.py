"""The checkpoint that rank files were made from, as a source: its files stand in no folder, their bytes in rank files.

Small files and headers are held in memory; a tensor's bytes are gathered from the ranks when they are read.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dsv4_shard.errors import ReadFailed
from dsv4_shard.reassembly.gather import Gatherer
from dsv4_shard.sources.base import FolderlessSource, OpenFile, Span, open_all
from dsv4_shard.tensors.header import Tensor


@dataclass(frozen=True, slots=True)
class ChangedTensor:
    """Tensors of the original checkpoint of which the ranks hold something else: `first` of `tensors` that are alike.

    They are `held` instead of `was`, or (empty) left out; `reason` says why.
    """

    tensors: int
    first: str
    was: str
    held: str
    reason: str

    def __str__(self) -> str:
        which = f"{self.tensors:,} tensors ({self.first} ...)" if self.tensors > 1 else self.first
        are = "are" if self.tensors > 1 else "is"
        if not self.held:
            return f"{which} {are} not in the ranks: {self.reason}"
        if self.held == self.was:
            return f"{which} {are} new, made with their weights: {self.held} of other blocks"
        return f"{which} {are} {self.held} as in the ranks, not {self.was} as in the checkpoint they were made from"


@dataclass(frozen=True, slots=True)
class RankSource(FolderlessSource):
    """See `sources.Source`. `root` is the folder of the ranks.

    `small` has whole files, `headers` the headers of weight files of `nbytes`, `tensors` what is in them in the order
    of its bytes. Without a `gatherer` only headers can be read. `changes` says what the ranks have not kept.
    """

    root: Path
    label: str
    revision: str | None
    small: Mapping[str, bytes]
    headers: Mapping[str, bytes]
    nbytes: Mapping[str, int]
    notes: tuple[str, ...] = ()
    changes: tuple[ChangedTensor, ...] = ()
    tensors: Mapping[str, list[Tensor]] = field(default_factory=dict)
    gatherer: Gatherer | None = None

    @property
    def sha256_verified(self) -> Sequence[str]:
        """Nothing came over a network."""
        return ()

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by name."""
        return {name: len(content) for name, content in self.small.items()} | dict(self.nbytes)

    def shares_disk(self, name: str, out: Path) -> bool:
        """No file of the checkpoint is anywhere."""
        return False

    def original(self, name: str) -> Path | None:
        """None: there is nothing to link to."""
        return None

    @contextmanager
    def open(self, name: str) -> Iterator["GatheredFile"]:
        """The file called `name`; rank files that are opened for it are closed at the end of the block."""
        if name in self.small:
            yield GatheredFile(name, self.small[name], len(self.small[name]), [], None)
        elif name not in self.headers:
            raise ReadFailed(f"{self.label}: {name}: no such file in the checkpoint that its ranks make up")
        elif self.gatherer is None:
            yield GatheredFile(name, self.headers[name], self.nbytes[name], [], None)
        else:
            with self.gatherer.files.in_use():
                yield GatheredFile(name, self.headers[name], self.nbytes[name], self.tensors[name], self.gatherer)

    def reading(
        self, names: Sequence[str], spans: Iterable[list[Span]]
    ) -> AbstractContextManager[Mapping[str, OpenFile]]:
        """The files called `names`, open."""
        return open_all(self, names)


class GatheredFile:
    """A file of the checkpoint: `head` is its beginning, the rest is gathered from ranks. See `sources.OpenFile`."""

    def __init__(self, name: str, head: bytes, nbytes: int, tensors: list[Tensor], gatherer: Gatherer | None) -> None:
        self.name, self.nbytes = name, nbytes
        self.mtime_ns = gatherer.files.stamp if gatherer else 0
        self._head, self._tensors, self._gatherer = head, tensors, gatherer
        self._starts = [tensor.start for tensor in tensors]

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)`."""
        buffer = bytearray(stop - start)
        self.readinto(start, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, start: int, buffer: memoryview, *, once: bool = False) -> None:
        """Fill `buffer` from byte `start` on. Raises ReadFailed beyond the end, and what gathering raises."""
        if start + len(buffer) > (self.nbytes if self._gatherer else len(self._head)):
            raise ReadFailed(f"{self.name}: ends at byte {self.nbytes}, {start + len(buffer)} are wanted")
        done = 0
        while done < len(buffer):
            at = start + done
            if at < len(self._head):
                part = self._head[at : at + len(buffer) - done]
                buffer[done : done + len(part)] = part
                done += len(part)
                continue
            assert self._gatherer is not None, "without ranks, all there is to read is the head"
            tensor = self._tensors[bisect_right(self._starts, at) - 1]
            count = min(len(buffer) - done, tensor.stop - at)
            self._gatherer.read(tensor, at - tensor.start, buffer[done : done + count])
            done += count

    def changed(self) -> str | None:
        """What differs in the rank files from when they were opened, or None."""
        return self._gatherer.files.changed() if self._gatherer else None
