"""The protocols of a source and its open files, and constants of reading."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

COMMIT = re.compile("[0-9a-f]{40}")
"""Pattern of a full commit hash."""

CHUNK_BYTES = 8 << 20
"""Bytes to read at a time. Larger chunks fall out of the CPU's cache and are slower."""


class Span(NamedTuple):
    """Bytes `[start, stop)` of a file that will be read.

    `aside` marks the small spans of scales, which are read together with the spans of their weights.
    """

    file: str
    start: int
    stop: int
    aside: bool = False


class SourcePart(NamedTuple):
    """A file that a checkpoint is put together from. Its header's xxh3-128 or its own SHA-256 identify it."""

    name: str
    nbytes: int
    header_digest: str | None = None
    sha256: str | None = None


class OpenFile(Protocol):
    """An open file of a source, as `LocalFile`. `read` and `readinto` are thread-safe.

    `nbytes` is the size in bytes, `mtime_ns` changes if the file is modified.
    """

    nbytes: int
    mtime_ns: int

    def read(self, start: int, stop: int) -> bytes: ...

    def readinto(self, start: int, buffer: memoryview, *, once: bool = False) -> None: ...

    def changed(self) -> str | None: ...


class Witness(Protocol):
    """What a source learns from the bytes that are read and checks across tensors, when processes do the reading.

    `defer`: in a worker process, keep what is learned. `seen`: what was kept since the last call, to be sent to the
    parent. `settle`: in the parent, check what a process has sent; raises the source's own errors.
    """

    def defer(self) -> None: ...

    def seen(self) -> list[Any]: ...

    def settle(self, seen: Iterable[Any]) -> None: ...


class Source(Protocol):
    """Where the files of a checkpoint are. `LocalSource` describes each method.

    Attributes:
        root: The folder that is read from, None if the source is not a folder.
        label: How the user named the source.
        revision: Hub commit, if known.
        notes: Sentences for the user about where the bytes come from.
        uri: A name of the place that holds on every machine; None for a folder.
        sha256_listed: File name -> SHA-256 in hexadecimal, as the Hub lists it for the commit. Nothing has checked it.
        sha256_verified: Names of the files whose SHA-256 was verified while they were read.
        parts: The files that the checkpoint's own are put together from; none if they are files themselves.
        witness: What must be told what worker processes learn; None if nothing is checked across tensors.
    """

    @property
    def root(self) -> Path | None: ...

    @property
    def label(self) -> str: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def uri(self) -> str | None: ...

    @property
    def sha256_listed(self) -> Mapping[str, str]: ...

    @property
    def sha256_verified(self) -> Sequence[str]: ...

    @property
    def parts(self) -> Sequence[SourcePart]: ...

    @property
    def witness(self) -> Witness | None: ...

    def sizes(self) -> dict[str, int]: ...

    def tree(self) -> dict[str, int | str]: ...

    def dangling_links(self) -> list[str]: ...

    def unfinished_downloads(self) -> list[str]: ...

    def links_outside(self, names: list[str]) -> list[str]: ...

    def shares_disk(self, name: str, out: Path) -> bool: ...

    def original(self, name: str) -> Path | None: ...

    def modified_ns(self, names: Sequence[str]) -> Mapping[str, int]: ...

    def open(self, name: str) -> AbstractContextManager[OpenFile]: ...

    def reading(
        self, names: Sequence[str], spans: Iterable[list[Span]]
    ) -> AbstractContextManager[Mapping[str, OpenFile]]: ...


class FolderlessSource:
    """Base of sources that are not a folder. The defects of folders do not occur in them."""

    __slots__ = ()

    @property
    def witness(self) -> Witness | None:
        return None

    def dangling_links(self) -> list[str]:
        return []

    def unfinished_downloads(self) -> list[str]:
        return []

    def links_outside(self, names: list[str]) -> list[str]:
        return []


@contextmanager
def open_all(source: Source, names: Sequence[str]) -> Iterator[Mapping[str, OpenFile]]:
    """Open the files `names`, and close them at the end of the block."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(source.open(name)) for name in names}
