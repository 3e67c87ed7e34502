"""`Source` whose bytes lie in rank files: the checkpoint that they were made from, which is in no folder.

Small files and headers are held in memory. A tensor's bytes are gathered from the ranks when they are read.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dsv4_shard.errors import ReadFailed
from dsv4_shard.reassembly.gather import Gatherer
from dsv4_shard.sources.base import FolderlessSource, OpenFile, SourcePart, Span, open_all
from dsv4_shard.tensors.header import Tensor


@dataclass(frozen=True, slots=True)
class ChangedTensor:
    """Tensors of the original checkpoint that the ranks hold in another form, or not at all.

    The change concerns `tensors` tensors; `first` is the name of one. `was` is their dtype in the original checkpoint,
    `held` that in the ranks (empty if the ranks do not have them). `reason` says why.
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
    """The checkpoint that rank files hold. See `sources.base.Source`.

    Attributes:
        root: The folder of the ranks.
        label: Name of the folder in messages.
        revision: Commit of the original checkpoint; None if tensors changed or it is unknown.
        small: Name -> content of each small file.
        headers: Weight file -> its header.
        nbytes: Weight file -> size in bytes.
        notes: Lines about how the checkpoint was put together.
        changes: The tensors that the ranks did not keep.
        tensors: Weight file -> its tensors, in the order of their bytes.
        gatherer: Reads the tensors; None if only headers are needed.
        parts: The manifest of the ranks, which has the digests of their files; without one, the files.
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
    parts: Sequence[SourcePart] = ()

    @property
    def uri(self) -> None:
        """None: the ranks are in a folder."""
        return None

    @property
    def sha256_listed(self) -> Mapping[str, str]:
        """Empty: the checkpoint's files do not exist."""
        return {}

    @property
    def sha256_verified(self) -> Sequence[str]:
        """Empty: no file was downloaded."""
        return ()

    @property
    def witness(self) -> Gatherer | None:
        """The gatherer: the manifest has one digest for all pieces of a tensor, which several processes may read."""
        return self.gatherer

    def sizes(self) -> dict[str, int]:
        """File name -> bytes."""
        return {name: len(content) for name, content in self.small.items()} | dict(self.nbytes)

    def tree(self) -> dict[str, int | str]:
        """File name -> bytes: the small files of the original checkpoint that the ranks carry are in `small`."""
        return dict(self.sizes())

    def shares_disk(self, name: str, out: Path) -> bool:
        """False: the checkpoint's files do not exist on disk."""
        return False

    def original(self, name: str) -> Path | None:
        """None: there is no file to link to."""
        return None

    def modified_ns(self, names: Sequence[str]) -> Mapping[str, int]:
        """Name -> time of the last modification of each rank file: any of them may hold a part of `names`."""
        return self.gatherer.files.modified_ns if self.gatherer else {}

    @contextmanager
    def open(self, name: str) -> Iterator["GatheredFile"]:
        """The file called `name`. Rank files that it needs are closed at the end of the block."""
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
        """The files called `names`, open. `spans` is not used."""
        return open_all(self, names)


class GatheredFile:
    """A file of the checkpoint: `head` is its first bytes, the rest is gathered from ranks.

    See `sources.base.OpenFile`.
    """

    def __init__(self, name: str, head: bytes, nbytes: int, tensors: list[Tensor], gatherer: Gatherer | None) -> None:
        self.name, self.nbytes = name, nbytes
        self.mtime_ns = gatherer.files.stamp if gatherer else 0
        self._head, self._tensors, self._gatherer = head, tensors, gatherer
        self._starts = [tensor.start for tensor in tensors]

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)`. Raises the errors of `readinto`."""
        if start == 0 and stop == len(self._head):
            return self._head
        buffer = bytearray(stop - start)
        self.readinto(start, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, start: int, buffer: memoryview, *, once: bool = False) -> None:
        """Fill `buffer` from byte `start` on. Raises ReadFailed beyond the end, and the errors of `Gatherer.read`."""
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
        """Describes the first change of a rank file since it was opened; None if there is none."""
        return self._gatherer.files.changed() if self._gatherer else None
