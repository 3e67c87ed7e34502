"""Fetches what a run will read before it asks, over several connections, and hands each byte out once.

The spans of a run are put together to blocks, one request each. Blocks are fetched in the order in which they will be
read, as many as a budget of memory allows; one that was read whole is forgotten. A reader waits for its block; where
nobody reads what is there, and somebody waits for what is not, the fetching goes beyond its budget.
"""

import threading
import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol

from dsv4_shard.sources.base import Span

CONNECTIONS = 16
"""Requests at a time. Hubs slow down who asks for more."""

BLOCK_BYTES = 8 << 20
"""One request: long enough that its latency does not count, short enough that 16 of them are no memory."""

BUDGET_BYTES = 192 << 20
"""Fetched and not yet read, before fetching waits: half as much again as is on its way at a time."""

HELD_BYTES = 32 << 20
"""Of what is read aside (scales), per file: up to so much is fetched in its place, and kept until it is read."""

_WINDOW_BYTES = 4 * BLOCK_BYTES

_BRIDGED_GAP = 256 << 10

_BRIDGED_SHARE = 64

_SECONDS_TO_END = 0.5

_PATIENCE_SECONDS = 1.0

Fetch = Callable[[str, int, memoryview, threading.Event], None]
"""Fill a buffer from a byte of a file on, unless the event is set; called from many threads."""


@dataclass(eq=False, slots=True)
class FetchRange:
    """Bytes `[start, stop)` of a file; `wanted` of them are still to be read, and are in `data` once they have come."""

    file: str
    start: int
    stop: int
    wanted: int
    data: memoryview | None = field(default=None)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class _Piece(NamedTuple):
    """Bytes that go into blocks: of a span, or of a gap that is small enough to be fetched too."""

    file: str
    start: int
    stop: int
    is_wanted: bool


def blocks(spans: list[Span]) -> Iterator[FetchRange]:
    """The blocks that cover spans which are read for one file's tensors, in the order to be fetched.

    That is the order of the bytes, from the file's beginning to its end, but for scales that lie behind their weights:
    they come with these. Where scales lie far before their weights and are too many to be kept for so long, it is the
    order of reading. Either way it is some blocks' bytes at a time that are put together to requests. Small gaps are
    fetched too: at most 1/64 of what is wanted.
    """
    aside = sum(span.stop - span.start for span in spans if span.aside)
    pieces = [_Piece(span.file, span.start, span.stop, True) for span in spans]
    if aside <= HELD_BYTES:
        places = _places(spans)
        fillers = list(_fillers(sorted(pieces)))
        places += [piece.start for piece in fillers]
        pieces += fillers
        pieces = [pieces[n] for n in sorted(range(len(pieces)), key=places.__getitem__)]
    for window in _windows(pieces):
        for run in _runs(sorted(window)):
            yield from _cut(run)


def _places(spans: list[Span]) -> list[int]:
    """The byte of the file at which each span is to be fetched: its own, or that of the weight that it lies behind."""
    places = []
    file, place = spans[0].file if spans else "", 0
    for span in spans:
        if not span.aside:
            file, place = span.file, span.start
        places.append(span.start if span.file == file and span.start < place else place)
    return places


def _fillers(pieces: list[_Piece]) -> Iterator[_Piece]:
    """The gaps between sorted pieces that may be fetched too."""
    left = sum(piece.stop - piece.start for piece in pieces) // _BRIDGED_SHARE
    file, edge = "", 0
    for piece in pieces:
        if piece.file == file and 0 < piece.start - edge <= min(left, _BRIDGED_GAP):
            left -= piece.start - edge
            yield _Piece(file, edge, piece.start, False)
        file, edge = piece.file, max(edge, piece.stop) if piece.file == file else piece.stop


def _windows(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces as they come, some blocks' bytes at a time."""
    window: list[_Piece] = []
    nbytes = 0
    for piece in pieces:
        window.append(piece)
        nbytes += piece.stop - piece.start
        if nbytes >= _WINDOW_BYTES:
            yield window
            window, nbytes = [], 0
    yield window


def _runs(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Sorted pieces, those together that touch."""
    run: list[_Piece] = []
    edge = 0
    for piece in pieces:
        if run and (piece.file != run[0].file or piece.start > edge):
            yield run
            run, edge = [], 0
        run.append(piece)
        edge = max(edge, piece.stop)
    if run:
        yield run


def _cut(run: list[_Piece]) -> Iterator[FetchRange]:
    """Blocks of at most BLOCK_BYTES that cover a run; each knows how many bytes of it are wanted."""
    waiting = deque(run)
    start, stop = run[0].start, max(piece.stop for piece in run)
    while start < stop:
        end = min(start + BLOCK_BYTES, stop)
        wanted = 0
        longer = []
        while waiting and waiting[0].start < end:
            piece = waiting.popleft()
            wanted += piece.is_wanted * (min(piece.stop, end) - max(piece.start, start))
            if piece.stop > end:
                longer.append(piece)
        waiting.extendleft(reversed(longer))
        if wanted:
            yield FetchRange(run[0].file, start, end, wanted)
        start = end


class Watcher(Protocol):
    """Is told of blocks: all that will be fetched for one file's tensors, then each as it has come. May raise."""

    def expect(self, blocks: list[FetchRange]) -> None: ...

    def take(self, block: FetchRange, data: memoryview) -> None: ...


class Readahead:
    """Fetching, from when the context is entered until it is left.

    `spans` is in the order of reading, a list for each file's tensors; `watcher` is told of each block before it can be
    read. An error of either ends the fetching, and every reader gets it. `fetch` gets an event that is set when nobody
    wants the bytes any more.
    """

    def __init__(self, fetch: Fetch, spans: Iterable[list[Span]], watcher: Watcher) -> None:
        self._fetch, self._watcher = fetch, watcher
        self._upcoming = self._expected(spans)
        self._live: dict[str, list[FetchRange]] = defaultdict(list)
        self._held = self._consumed = 0
        self._beyond = 0
        self._is_over = False
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"fetch-{n}", daemon=True) for n in range(CONNECTIONS)
        ]

    def __enter__(self) -> "Readahead":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped.set()
            self._live.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)  # one that waits for a dead server ends with its timeout, and harms nobody

    def readinto(self, file: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` of `file` on; what no span told of is fetched on the spot."""
        done = 0
        while done < len(buffer):
            at = start + done
            found = self._await(file, at)
            if found is None:
                self._fetch(file, at, buffer[done:], self._stopped)
                return
            block, data = found
            count = min(len(buffer) - done, block.stop - at)
            buffer[done : done + count] = data[at - block.start : at - block.start + count]
            self._consume(block, count)
            done += count

    def _expected(self, spans: Iterable[list[Span]]) -> Iterator[FetchRange]:
        for alike in spans:
            upcoming = list(blocks(alike))
            self._watcher.expect(upcoming)
            yield from upcoming

    def _await(self, file: str, at: int) -> tuple[FetchRange, memoryview] | None:
        """The block that holds byte `at`, when it has come; None where none will, or not before memory runs out.

        Where it is beyond the budget, others that read what comes before make room: one who waits lets the fetching go
        on only when for some time nobody has read anything.
        """
        with self._changed:
            consumed, since = self._consumed, time.monotonic()
            while self._error is None:
                block = self._find(file, at)
                if block is not None and block.data is not None:
                    return block, block.data
                if self._consumed != consumed:
                    consumed, since = self._consumed, time.monotonic()
                is_stuck = block is None and time.monotonic() - since >= _PATIENCE_SECONDS
                if block is None and (self._is_over or (is_stuck and self._held >= 2 * BUDGET_BYTES)):
                    return None
                self._beyond += is_stuck
                if is_stuck:
                    self._changed.notify_all()
                self._changed.wait(_PATIENCE_SECONDS)
                self._beyond -= is_stuck
            raise self._error

    def _find(self, file: str, at: int) -> FetchRange | None:
        live = self._live[file]
        index = bisect_right(live, at, key=_start) - 1
        return live[index] if index >= 0 and at < live[index].stop else None

    def _consume(self, block: FetchRange, count: int) -> None:
        with self._changed:
            self._consumed += count
            block.wanted -= count
            if block.wanted <= 0 and block in self._live[block.file]:
                self._live[block.file].remove(block)
                block.data = None
                self._held -= block.nbytes
                self._changed.notify_all()

    def _work(self) -> None:
        """A connection's life: take the next block, fetch it, say so."""
        try:
            while (block := self._next()) is not None:
                data = memoryview(bytearray(block.nbytes))
                self._fetch(block.file, block.start, data, self._stopped)
                self._watcher.take(block, data)
                with self._changed:
                    block.data = data
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _next(self) -> FetchRange | None:
        """The next block to fetch, when there is room for it; None where there is none, or nobody wants it."""
        with self._changed:
            while self._held >= BUDGET_BYTES and not (self._beyond or self._is_ending()):
                self._changed.wait()
            block = None if self._is_ending() else next(self._upcoming, None)
            if block is None:
                self._is_over = True
            else:
                live = self._live[block.file]
                live.insert(bisect_right(live, block.start, key=_start), block)
                self._held += block.nbytes
            self._changed.notify_all()
            return block

    def _is_ending(self) -> bool:
        return self._stopped.is_set() or self._error is not None


def _start(block: FetchRange) -> int:
    return block.start
