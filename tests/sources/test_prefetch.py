"""Fetching ahead: every byte once, in few requests, within a budget, and nobody waits for ever."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_shard.errors import ServerFailed
from dsv4_shard.sources import prefetch as readahead
from dsv4_shard.sources.base import Span
from dsv4_shard.sources.prefetch import FetchRange, Readahead, blocks

FILE_BYTES = 100_000


class Server:
    """Files of random bytes; counts what is fetched of them."""

    def __init__(self, files: int = 1) -> None:
        random = np.random.default_rng(3)
        self.files = {f"{n}.bin": random.bytes(FILE_BYTES) for n in range(files)}
        self.times = {name: np.zeros(FILE_BYTES, np.int64) for name in self.files}
        self.requests: list[tuple[str, int, int]] = []
        self.lock = threading.Lock()

    def fetch(self, name: str, start: int, buffer: memoryview, stopped: threading.Event) -> None:
        with self.lock:
            self.requests.append((name, start, start + len(buffer)))
            self.times[name][start : start + len(buffer)] += 1
        buffer[:] = self.files[name][start : start + len(buffer)]


class Watcher:
    def __init__(self) -> None:
        self.expected: list[FetchRange] = []
        self.taken: list[tuple[str, int, bytes]] = []

    def expect(self, blocks: list[FetchRange]) -> None:
        self.expected += blocks

    def take(self, block: FetchRange, data: memoryview) -> None:
        self.taken.append((block.file, block.start, bytes(data)))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 100 kB stand for 13 GB."""
    monkeypatch.setattr(readahead, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(readahead, "PAGE_BYTES", 1)
    monkeypatch.setattr(readahead, "BUDGET_BYTES", 6000)
    monkeypatch.setattr(readahead, "MAX_ASIDE_BYTES", 3000)
    monkeypatch.setattr(readahead, "_WINDOW_BYTES", 4000)
    monkeypatch.setattr(readahead, "CONNECTIONS", 4)


def read(ahead: Readahead, span: Span) -> bytes:
    buffer = bytearray(span.stop - span.start)
    ahead.readinto(span.file, span.start, memoryview(buffer))
    return bytes(buffer)


@st.composite
def span_lists(draw: st.DrawFn) -> list[list[Span]]:
    """Disjoint spans of some files in the order of reading: that of the bytes, those that are aside anywhere."""
    lists = []
    for file in range(draw(st.integers(1, 3))):
        edges = sorted(draw(st.sets(st.integers(0, FILE_BYTES), min_size=2, max_size=30)))
        pairs = [pair for pair in pairwise(edges) if draw(st.booleans())]
        spans: list[Any] = []
        for start, stop in pairs:
            aside = stop - start < 600 and draw(st.booleans())
            spans.insert(
                draw(st.integers(0, len(spans))) if aside else len(spans), Span(f"{file}.bin", start, stop, aside)
            )
        lists.append(spans)
    return lists


@pytest.mark.slow
@given(span_lists(), st.integers(1, 4))
def test_every_span_is_read_right_and_fetched_once(lists: list[list[Span]], readers: int) -> None:
    server = Server(3)
    spans = [span for alike in lists for span in alike]
    with Readahead(server.fetch, iter(lists), Watcher()) as ahead, ThreadPoolExecutor(readers) as pool:
        found = list(pool.map(lambda span: read(ahead, span), spans))
    for span, data in zip(spans, found, strict=True):
        assert data == server.files[span.file][span.start : span.stop]
    for name, times in server.times.items():
        for start, stop in ahead._given_up[name]:  # a reader that waited too long, on a busy machine
            times[start:stop] -= 1
        assert times.max() <= 1


@pytest.mark.slow
@given(span_lists())
def test_blocks_cover_what_is_wanted_and_little_else(lists: list[list[Span]]) -> None:
    for alike in lists:
        made = list(blocks(alike))
        wanted = sum(span.stop - span.start for span in alike)
        assert sum(block.wanted for block in made) == wanted
        assert sum(block.nbytes for block in made) <= wanted * (1 + 1 / 64)
        assert all(0 < block.nbytes <= 1000 for block in made)
        if not any(span.aside for span in alike):
            assert [block.start for block in made] == sorted(block.start for block in made)


def test_spans_that_touch_are_one_request() -> None:
    spans = [Span("0.bin", start, start + 10) for start in range(0, 5000, 10)]
    assert [(block.start, block.stop) for block in blocks(spans)] == [(n, n + 1000) for n in range(0, 5000, 1000)]


def test_scales_that_lie_far_away_are_fetched_with_their_weights_where_they_are_many() -> None:
    spans = []
    for n in range(100):
        spans += [Span("0.bin", 50_000 + n * 400, 50_400 + n * 400), Span("0.bin", n * 100, n * 100 + 100, aside=True)]
    made = list(blocks(spans))
    assert [block.start for block in made[:2]] == [0, 50_000], "a window has its scales, then its weights"
    assert len(made) <= 100, "not a request a tensor"


def test_bytes_that_several_spans_name_are_fetched_once() -> None:
    server = Server()
    spans = [Span("0.bin", 100, 900), Span("0.bin", 100, 900), Span("0.bin", 500, 1500)]
    with Readahead(server.fetch, [spans], Watcher()) as ahead:
        for span in spans:
            assert read(ahead, span) == server.files["0.bin"][span.start : span.stop]
    assert server.times["0.bin"].sum() == 1400


def test_no_more_is_fetched_than_the_budget_allows_until_somebody_reads() -> None:
    server, spans = Server(), [Span("0.bin", 0, FILE_BYTES)]
    with Readahead(server.fetch, [spans], Watcher()) as ahead:
        read(ahead, Span("0.bin", 0, 10))
        for thread in ahead._threads:
            thread.join(0.05)
        assert server.times["0.bin"].sum() <= 6000 + 4 * 1000


def test_what_was_read_is_forgotten() -> None:
    server, watcher = Server(), Watcher()
    with Readahead(server.fetch, [[Span("0.bin", 0, FILE_BYTES)]], watcher) as ahead:
        for start in range(0, FILE_BYTES, 500):
            read(ahead, Span("0.bin", start, start + 500))
        assert len(watcher.expected) == FILE_BYTES // 1000
        assert all(block.data is None for block in watcher.expected)
        assert ahead._buffered_nbytes == 0


def test_a_reader_beyond_the_budget_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "_PATIENCE_SECONDS", 0.01)
    server = Server()
    with Readahead(server.fetch, [[Span("0.bin", 0, FILE_BYTES)]], Watcher()) as ahead:
        assert read(ahead, Span("0.bin", 99_000, 99_500)) == server.files["0.bin"][99_000:99_500]


def test_a_reader_that_gave_up_leaves_nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks would fill the budget, and every later reader would wait until its patience ends."""
    monkeypatch.setattr(readahead, "_PATIENCE_SECONDS", 0.01)
    server, watcher = Server(), Watcher()
    with Readahead(server.fetch, [[Span("0.bin", 0, FILE_BYTES)]], watcher) as ahead:
        assert read(ahead, Span("0.bin", 60_000, 99_500)) == server.files["0.bin"][60_000:99_500]
        monkeypatch.setattr(readahead, "_PATIENCE_SECONDS", 60)
        for start in [*range(0, 60_000, 500), 99_500]:
            read(ahead, Span("0.bin", start, start + 500))
        for thread in ahead._threads:
            thread.join()
        assert ahead._buffered_nbytes == 0
    assert len(watcher.taken) == FILE_BYTES // 1000, "a watcher sees every block"


def test_what_no_span_told_of_is_fetched_on_the_spot() -> None:
    server = Server()
    with Readahead(server.fetch, [[Span("0.bin", 0, 100)]], Watcher()) as ahead:
        assert read(ahead, Span("0.bin", 5000, 9000)) == server.files["0.bin"][5000:9000]


def test_an_error_of_fetching_reaches_every_reader() -> None:
    def fetch(name: str, start: int, buffer: memoryview, stopped: threading.Event) -> None:
        raise ServerFailed(f"byte {start}")

    with Readahead(fetch, [[Span("0.bin", 0, FILE_BYTES)]], Watcher()) as ahead:
        for start in (0, 50_000):
            with pytest.raises(ServerFailed):
                read(ahead, Span("0.bin", start, start + 10))


def test_the_watcher_sees_each_block_before_a_reader_does() -> None:
    server, watcher = Server(), Watcher()
    with Readahead(server.fetch, [[Span("0.bin", 0, 3000)]], watcher) as ahead:
        read(ahead, Span("0.bin", 2000, 2010))
        assert 2000 in [start for _, start, _ in watcher.taken]
        read(ahead, Span("0.bin", 0, 3000))
    assert {(start, data) for _, start, data in watcher.taken} == {
        (start, server.files["0.bin"][start : start + 1000]) for start in (0, 1000, 2000)
    }
    assert [block.start for block in watcher.expected] == [0, 1000, 2000]


def test_leaving_ends_the_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[threading.Event] = []

    def fetch(name: str, start: int, buffer: memoryview, stopped: threading.Event) -> None:
        stops.append(stopped)
        stopped.wait()

    with Readahead(fetch, [[Span("0.bin", 0, FILE_BYTES)]], Watcher()) as ahead:
        while not stops:
            pass
    assert stops[0].is_set()
    for thread in ahead._threads:
        thread.join()
