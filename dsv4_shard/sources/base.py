"""Protocols `Source`, `OpenFile`, `Span`; constants of reading."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

COMMIT = re.compile("[0-9a-f]{40}")

CHUNK_BYTES = 8 << 20
"""Bytes to read at a time; larger chunks fall out of the CPU's cache and are slower."""


class Span(NamedTuple):
    """Bytes `[start, stop)` of a file that will be read; `aside` where they are small, and read beside others."""

    file: str
    start: int
    stop: int
    aside: bool = False


class OpenFile(Protocol):
    """An open file of a source. `read` and `readinto` may be called from any thread; see `LocalFile`."""

    nbytes: int
    mtime_ns: int

    def read(self, start: int, stop: int) -> bytes: ...

    def readinto(self, start: int, buffer: memoryview, *, once: bool = False) -> None: ...

    def changed(self) -> str | None: ...


class Source(Protocol):
    """Where the files of a checkpoint are; each method as `LocalSource` has it.

    `root` is the folder that is read from, if it is one, `label` how the user named it. `notes` is what a user should
    know of where the bytes come from. `intact` names the files that were held against a digest while they were read.
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
    def intact(self) -> Sequence[str]: ...

    def sizes(self) -> dict[str, int]: ...

    def dangling_links(self) -> list[str]: ...

    def unfinished_downloads(self) -> list[str]: ...

    def links_outside(self, names: list[str]) -> list[str]: ...

    def shares_disk(self, name: str, out: Path) -> bool: ...

    def original(self, name: str) -> Path | None: ...

    def open(self, name: str) -> AbstractContextManager[OpenFile]: ...

    def reading(
        self, names: Sequence[str], spans: Iterable[list[Span]]
    ) -> AbstractContextManager[Mapping[str, OpenFile]]: ...


class InNoFolder:
    """What holds of every source whose files stand in no folder: nothing of one can be wrong."""

    __slots__ = ()

    def dangling_links(self) -> list[str]:
        return []

    def unfinished_downloads(self) -> list[str]:
        return []

    def links_outside(self, names: list[str]) -> list[str]:
        return []


@contextmanager
def open_all(source: Source, names: Sequence[str]) -> Iterator[Mapping[str, OpenFile]]:
    """The files called `names`, closed at the end of the block."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(source.open(name)) for name in names}
