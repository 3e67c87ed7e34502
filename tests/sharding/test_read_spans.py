"""What a run reads of a remote source is what `reading` says beforehand: no more, no less, and in that order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from support.random_work import random_work

from dsv4_shard.sharding.copy import Listeners, copy
from dsv4_shard.sharding.journal import Finished
from dsv4_shard.sharding.recipe import spans
from dsv4_shard.sources.base import OpenFile, Source, Span
from dsv4_shard.sources.local import LocalFile, LocalSource


@dataclass
class Recorder:
    """A file that notes what is read of it."""

    file: LocalFile
    reads: list[Span]
    nbytes: int = 0
    mtime_ns: int = 0

    def read(self, start: int, stop: int) -> bytes:
        raise AssertionError("a run reads into its own buffers")

    def readinto(self, start: int, buffer: memoryview, *, once: bool = False) -> None:
        self.reads.append(Span(self.file.name, start, start + len(buffer)))
        self.file.readinto(start, buffer, once=once)

    def changed(self) -> str | None:
        return None


@dataclass(frozen=True, slots=True)
class RecordingSource:
    """A place that is no folder, and notes what is said of a run, and what the run reads."""

    folder: LocalSource
    reads: list[Span] = field(default_factory=list)
    said: list[Span] = field(default_factory=list)
    root: None = None

    @contextmanager
    def reading(self, names: Sequence[str], spans: Iterable[list[Span]]) -> Iterator[Mapping[str, OpenFile]]:
        self.said.extend(span for alike in spans for span in alike)
        with self.folder.reading(names, ()) as files:
            yield {name: Recorder(file, self.reads) for name, file in files.items() if isinstance(file, LocalFile)}


@dataclass
class Noted:
    """Finished steps, in the order in which they were."""

    finished: list[Finished] = field(default_factory=list)

    def note(self, finished: Finished) -> None:
        self.finished.append(finished)


def joined(reads: list[Span]) -> list[tuple[str, int, int]]:
    """Reads that go on where the one before ended, as one."""
    runs: list[tuple[str, int, int]] = []
    for file, start, stop, *_ in reads:
        if runs and runs[-1][0] == file and runs[-1][2] == start:
            runs[-1] = (file, runs[-1][1], stop)
        elif start < stop:
            runs.append((file, start, stop))
    return runs


@pytest.mark.parametrize("seed", range(20))
def test_what_is_said_is_what_is_read_in_that_order(seed: int, tmp_path: Path) -> None:
    work = random_work(tmp_path / "work", seed, 12)
    source = RecordingSource(work.source)
    copy(work.recipe, cast(Source, source), work.sink(), 1)
    assert joined(source.reads) == joined(source.said)
    assert sum(stop - start for _, start, stop in joined(source.said)) > 0


def test_what_an_earlier_run_finished_is_not_said(tmp_path: Path) -> None:
    work = random_work(tmp_path / "work", 1, 12)
    log = Noted()
    copy(work.recipe, work.source, work.sink(), 1, Listeners(log=log))
    source = RecordingSource(work.source)
    copy(work.recipe, cast(Source, source), work.sink(), 1, finished=sorted(log.finished)[:5])
    said = [span for alike in spans(work.recipe.steps[5:]) for span in alike]
    assert source.said == said
    assert joined(source.reads) == joined(said)
