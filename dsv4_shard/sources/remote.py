"""A checkpoint on a server as a source: listing and headers are in memory, other bytes are fetched when they are read.

`Remote` is the protocol that the Hub and object stores implement. This module has everything that they share.
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
from dsv4_shard.sources.base import FolderlessSource, OpenFile, SourcePart, Span
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.sources.prefetch import Fetch, Readahead, blocks
from dsv4_shard.sources.sha256_check import Sha256Check

_NEVER = Event()


class Listed(NamedTuple):
    """A file in a server's listing.

    Attributes:
        nbytes: Size in bytes.
        stamp: Text that changes with the content (an ETag or a hash).
        sha256: SHA-256 of the content in hexadecimal, if the server has it.
    """

    nbytes: int
    stamp: str
    sha256: str | None = None


class Remote(Protocol):
    """A place on a server. `place` is its name for users, `uri` one that holds on every machine."""

    @property
    def place(self) -> str: ...

    @property
    def uri(self) -> str: ...

    def fetch(self, name: str, start: int, buffer: memoryview, stopped: Event) -> None:
        """Fill `buffer` with bytes of a file. Thread-safe. Retries failed requests itself.

        Args:
            name: Name of the file.
            start: First byte.
            buffer: Where the bytes go; its length is the number of bytes to read.
            stopped: Ends the reading when set.

        Raises:
            Unreachable: The bytes cannot be read, or `stopped` was set.
        """
        ...

    def modified_ns(self) -> Mapping[str, int]:
        """Return name → time of the last modification in ns; empty if a commit identifies the content."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteSource(FolderlessSource):
    """A place on a server as a `Source`.

    Attributes:
        remote: The place.
        label: How the user named it.
        revision: Hub commit, if any.
        listing: Name → every file of the place.
        headers: Name → the file's first bytes: the header of a weight file, a small file completely.
        notes: Sentences for the user.
        local: Folder that has some of the files already. They are read from there.
        sha256_verified: Names of the files that were fetched completely and have the SHA-256 of the listing.
    """

    remote: Remote
    label: str
    revision: str | None
    listing: Mapping[str, Listed]
    headers: Mapping[str, bytes]
    notes: tuple[str, ...] = ()
    local: LocalSource | None = None
    sha256_verified: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path | None:
        """None: the source is not a folder that could contain an output."""
        return None

    @property
    def uri(self) -> str:
        """The URI of the place."""
        return self.remote.uri

    @property
    def parts(self) -> Sequence[SourcePart]:
        """Empty: the files are the checkpoint's own."""
        return ()

    @property
    def sha256_listed(self) -> Mapping[str, str]:
        """Name → SHA-256 of the files whose SHA-256 the server lists."""
        return {name: listed.sha256 for name, listed in self.listing.items() if listed.sha256}

    def sizes(self) -> dict[str, int]:
        """Return name → bytes of every file that lies in no folder."""
        return {name: listed.nbytes for name, listed in sorted(self.listing.items()) if "/" not in name}

    def tree(self) -> dict[str, int | str]:
        """Return name → bytes of every file, those in folders too."""
        return {name: listed.nbytes for name, listed in sorted(self.listing.items())}

    def shares_disk(self, name: str, out: Path) -> bool:
        """Return whether the file is on this machine already, on the file system of `out`."""
        return self._is_local(name) and self.local is not None and self.local.shares_disk(name, out)

    def original(self, name: str) -> Path | None:
        """Return the file's path if it is on this machine already, else None."""
        return self.local.original(name) if self.local is not None and self._is_local(name) else None

    def modified_ns(self, names: Sequence[str]) -> Mapping[str, int]:
        """Return name → time of the last modification of the files `names`. See `LocalSource.modified_ns`."""
        times = self.remote.modified_ns()
        return {name: times[name] for name in names if name in times}

    @contextmanager
    def open(self, name: str) -> Iterator["RemoteFile"]:
        """Open the file `name`. If it is not on this machine, each read beyond its header is a request."""
        if self.local is not None and self._is_local(name):
            with self.local.open(name) as file:
                yield self._file(name, file.readinto)
        else:
            yield self._file(name, lambda start, buffer: self.remote.fetch(name, start, buffer, _NEVER))

    @contextmanager
    def reading(self, names: Sequence[str], spans: Iterable[list[Span]]) -> Iterator[Mapping[str, OpenFile]]:
        """Open the files `names`, fetched ahead in the order of `spans`. See `LocalSource.reading`."""
        local = set(filter(self._is_local, names))
        nbytes = {name: self._listed(name).nbytes for name in names}
        digests = {name: sha256 for name in names if (sha256 := self._listed(name).sha256)}
        watcher = Sha256Check(digests, self.headers, nbytes)
        with ExitStack() as stack:
            opened: dict[str, OpenFile] = {}
            if self.local is not None:
                opened |= {name: stack.enter_context(self.local.open(name)) for name in sorted(local)}
            remote = [[span for span in of_file if span.file not in local] for of_file in spans]
            fetch = stack.enter_context(self._sharing(remote))
            readahead = stack.enter_context(Readahead(fetch, remote, watcher))
            yield opened | {
                name: self._file(name, partial(readahead.readinto, name)) for name in names if name not in local
            }
        self.sha256_verified.extend(watcher.passed)

    @contextmanager
    def _sharing(self, spans: list[list[Span]]) -> Iterator[Fetch]:
        """Give the function that fetches these spans: together with other processes here, if they are but a share."""
        from dsv4_shard.sources.shared_fetch import is_share, shared_fetch

        nbytes = {name: listed.nbytes for name, listed in self.listing.items()}
        wanted = [block for of_file in spans for block in blocks(of_file)]
        if not is_share(wanted, nbytes):
            yield self.remote.fetch
            return
        stamps = "\0".join(f"{name}\0{listed.stamp}" for name, listed in sorted(self.listing.items()))
        with shared_fetch(self.remote.fetch, f"{self.uri}\0{stamps}", nbytes, wanted) as fetch:
            yield fetch

    def _listed(self, name: str) -> Listed:
        try:
            return self.listing[name]
        except KeyError:
            raise ReadFailed(f"{self.label}: {name}: no such file") from None

    def _is_local(self, name: str) -> bool:
        """Return whether the file is on this machine, with the listed size."""
        try:
            return self.local is not None and (self.local.root / name).stat().st_size == self._listed(name).nbytes
        except OSError:
            return False

    def _file(self, name: str, readinto: "ReadInto") -> "RemoteFile":
        return RemoteFile(name, self._listed(name), self.headers.get(name, b""), readinto)


ReadInto = Callable[[int, memoryview], None]
"""Fills a buffer with a file's bytes from an offset on."""


class RemoteFile:
    """An open file on a server, as an `OpenFile`. `mtime_ns` is a number computed from the listed stamp."""

    def __init__(self, name: str, listed: Listed, header: bytes, readinto: ReadInto) -> None:
        """`header` has the file's first bytes; `readinto` reads the others."""
        self.name, self.nbytes = name, listed.nbytes
        self.mtime_ns = xxhash.xxh3_64_intdigest(listed.stamp.encode()) >> 1
        self._header, self._readinto = header, readinto

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes `[start, stop)`. Raises as `readinto` does."""
        if stop <= len(self._header):
            return self._header[start:stop]
        buffer = bytearray(stop - start)
        self.readinto(start, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, start: int, buffer: memoryview, *, once: bool = False) -> None:
        """Fill `buffer` with the bytes from `start` on. `once` has no effect.

        Raises ReadFailed beyond the end of the file, and the errors of fetching.
        """
        if start + len(buffer) > self.nbytes:
            raise ReadFailed(f"{self.name}: ends at byte {self.nbytes}, {start + len(buffer)} are wanted")
        known = self._header[start : start + len(buffer)]
        buffer[: len(known)] = known
        if len(known) < len(buffer):
            self._readinto(start + len(known), buffer[len(known) :])

    def changed(self) -> str | None:
        """None: each request names the listed content, and the answer is that content or an error."""
        return None
