"""A checkpoint on a server: its listing and the heads of its files are held in memory, the rest is fetched when read.

`Remote` is what a protocol (the Hub's, an object store's) has to provide; all else about reading from afar is here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol

import xxhash

from dsv4_shard.errors import ReadFailed
from dsv4_shard.sources.base import InNoFolder, OpenFile, Span
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.sources.prefetch import Readahead
from dsv4_shard.sources.sha256_check import Sha256Check

_NEVER = Event()


class Listed(NamedTuple):
    """What a server's listing says of a file. `stamp` is another one where the content is."""

    nbytes: int
    stamp: str
    sha256: str | None = None


class Remote(Protocol):
    """A place on a server. `fetch` fills a buffer from a byte of a file on, from any thread, or raises Unreachable.

    It retries by itself, and gives up where the event is set. `place` is what users know it by.
    """

    @property
    def place(self) -> str: ...

    def fetch(self, name: str, start: int, buffer: memoryview, stopped: Event) -> None: ...


@dataclass(frozen=True, slots=True)
class RemoteSource(InNoFolder):
    """See `sources.Source`. `listing` has every file of the place, `heads` whole small files and headers of others.

    `local` is a folder where some of the files stand already; they are read from there. `intact` files were read whole
    from the server and found to have the SHA-256 of the listing.
    """

    remote: Remote
    label: str
    revision: str | None
    listing: Mapping[str, Listed]
    heads: Mapping[str, bytes]
    notes: tuple[str, ...] = ()
    local: LocalSource | None = None
    intact: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path | None:
        """None: there is no folder that an output could lie in. A cache is nobody's output."""
        return None

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by name."""
        return {name: listed.nbytes for name, listed in sorted(self.listing.items())}

    def shares_disk(self, name: str, out: Path) -> bool:
        """Whether the file stands here already, on the file system that `out` will be on."""
        return self._is_local(name) and self.local is not None and self.local.shares_disk(name, out)

    def original(self, name: str) -> Path | None:
        """The file, where it stands here already."""
        return self.local.original(name) if self.local is not None and self._is_local(name) else None

    @contextmanager
    def open(self, name: str) -> Iterator["RemoteFile"]:
        """The file called `name`; where it does not stand here, each read of more than its head asks the server."""
        if self.local is not None and self._is_local(name):
            with self.local.open(name) as file:
                yield self._file(name, file.readinto)
        else:
            yield self._file(name, lambda start, buffer: self.remote.fetch(name, start, buffer, _NEVER))

    @contextmanager
    def reading(self, names: Sequence[str], spans: Iterable[list[Span]]) -> Iterator[Mapping[str, OpenFile]]:
        """The files called `names`, fetched ahead in the order of `spans`. See `LocalSource.reading`."""
        local = set(filter(self._is_local, names))
        nbytes = {name: self._listed(name).nbytes for name in names}
        digests = {name: sha256 for name in names if (sha256 := self._listed(name).sha256)}
        watcher = Sha256Check(digests, self.heads, nbytes)
        with ExitStack() as stack:
            opened: dict[str, OpenFile] = {}
            if self.local is not None:
                opened |= {name: stack.enter_context(self.local.open(name)) for name in sorted(local)}
            afar = ([span for span in alike if span.file not in local] for alike in spans)
            ahead = stack.enter_context(Readahead(self.remote.fetch, afar, watcher))
            yield opened | {
                name: self._file(name, partial(ahead.readinto, name)) for name in names if name not in local
            }
        self.intact.extend(watcher.passed)

    def _listed(self, name: str) -> Listed:
        try:
            return self.listing[name]
        except KeyError:
            raise ReadFailed(f"{self.label}: {name}: no such file") from None

    def _is_local(self, name: str) -> bool:
        """Whether the file stands here, as large as it should be."""
        try:
            return self.local is not None and (self.local.root / name).stat().st_size == self._listed(name).nbytes
        except OSError:
            return False

    def _file(self, name: str, readinto: "ReadInto") -> "RemoteFile":
        return RemoteFile(name, self._listed(name), self.heads.get(name, b""), readinto)


ReadInto = Callable[[int, memoryview], None]
"""Fill a buffer from a byte of a file on."""


class RemoteFile:
    """A file on a server: `head` is its beginning. See `sources.OpenFile`; `mtime_ns` is a number made of its stamp."""

    def __init__(self, name: str, listed: Listed, head: bytes, readinto: ReadInto) -> None:
        self.name, self.nbytes = name, listed.nbytes
        self.mtime_ns = xxhash.xxh3_64_intdigest(listed.stamp.encode()) >> 1
        self._head, self._readinto = head, readinto

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)`."""
        if stop <= len(self._head):
            return self._head[start:stop]
        buffer = bytearray(stop - start)
        self.readinto(start, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, start: int, buffer: memoryview, *, once: bool = False) -> None:
        """Fill `buffer` from byte `start` on. Raises ReadFailed beyond the end, and what fetching raises."""
        if start + len(buffer) > self.nbytes:
            raise ReadFailed(f"{self.name}: ends at byte {self.nbytes}, {start + len(buffer)} are wanted")
        known = self._head[start : start + len(buffer)]
        buffer[: len(known)] = known
        if len(known) < len(buffer):
            self._readinto(start + len(known), buffer[len(known) :])

    def changed(self) -> str | None:
        """None: who fetches names the content that was listed, and gets that or an error."""
        return None
