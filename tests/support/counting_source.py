"""A source that counts each range that is read of a checkpoint's tensors."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class CountingSource:
    """Another source, whose reads are counted: (file, first byte, end) -> how often."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.reads: Counter[tuple[str, int, int]] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @contextmanager
    def reading(self, names: Iterable[str], spans: Any) -> Iterator[Mapping[str, Any]]:
        """The files, each counting."""
        with self._source.reading(names, spans) as files:
            yield {name: _CountingFile(name, file, self.reads) for name, file in files.items()}

    @property
    def nbytes(self) -> int:
        """All bytes that were read; one that was read twice counts twice."""
        return sum((stop - start) * count for (_, start, stop), count in self.reads.items())


class _CountingFile:
    def __init__(self, name: str, file: Any, reads: Counter[tuple[str, int, int]]) -> None:
        self._name, self._file, self._reads = name, file, reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def readinto(self, start: int, buffer: memoryview, *, once: bool = False) -> None:
        self._reads[self._name, start, start + len(buffer)] += 1
        self._file.readinto(start, buffer, once=once)
