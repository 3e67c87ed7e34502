"""Bounded read-ahead over parallel range requests: fetches the bytes of a run before it reads them, once.

The spans of a run are merged into blocks of one request each. Blocks are fetched in the order in which they will be
read, up to a memory budget, and freed after they have been read completely. A reader waits for its block. If readers
wait for later blocks while nobody reads the fetched ones, fetching exceeds the budget.
"""

import ctypes
import threading
import time
import weakref
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol

from dsv4_shard.sources.base import Span

CONNECTIONS = 16
"""Number of parallel requests. Hubs slow down clients that use more."""

BLOCK_BYTES = 8 << 20
"""Largest request: long enough to hide its latency, and 16 of them need little memory."""

PAGE_BYTES = 64 << 10
"""Blocks that follow each other meet at multiples of this, so that processes can share them page by page."""

BUDGET_BYTES = 192 << 20
"""Bytes fetched and not yet read at which fetching pauses: 1.5 times the bytes of 16 requests."""

MAX_ASIDE_BYTES = 32 << 20
"""Most bytes of a file's aside spans (scales) that are fetched in file order and kept until they are read."""

_WINDOW_BYTES = 4 * BLOCK_BYTES
"""Bytes of pieces that are sorted and merged at a time."""

_MAX_GAP_BYTES = 256 << 10
"""Largest gap between two pieces that is fetched too, to merge them into one request."""

_GAP_SHARE = 64
"""Gaps may add 1/64 of the wanted bytes."""

_JOIN_SECONDS = 0.5

_PATIENCE_SECONDS = 1.0
"""Seconds without any read after which a waiting reader lets fetching exceed its budget."""

Fetch = Callable[[str, int, memoryview, threading.Event], None]
"""Fills a buffer with a file's bytes from an offset on, unless the event is set. Called from many threads."""


@dataclass(eq=False, slots=True)
class FetchRange:
    """A block of one request: bytes `[start, stop)` of a file.

    Attributes:
        file: Name of the file.
        start: First byte.
        stop: End byte, exclusive.
        wanted: Bytes that are still to be read by the run.
        data: The bytes, once they have been fetched.
    """

    file: str
    start: int
    stop: int
    wanted: int
    data: memoryview | None = field(default=None)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class _BlockPiece(NamedTuple):
    """Bytes that go into blocks: of a span (`is_wanted`), or of a gap that is fetched too."""

    file: str
    start: int
    stop: int
    is_wanted: bool


def blocks(spans: list[Span]) -> Iterator[FetchRange]:
    """Yield the blocks that cover the spans of one weight file, in the order of fetching.

    This is the order of the bytes in the file, but scales behind their weights come together with these. If the scales
    are too large to be kept in memory (MAX_ASIDE_BYTES), it is the order of reading instead. In both cases, pieces of
    _WINDOW_BYTES are merged into requests at a time. Small gaps are fetched too, at most 1/64 of the wanted bytes.
    """
    aside_nbytes = sum(span.stop - span.start for span in spans if span.aside)
    pieces = [_BlockPiece(span.file, span.start, span.stop, True) for span in spans]
    if aside_nbytes <= MAX_ASIDE_BYTES:
        positions = _positions(spans)
        gaps = list(_gaps(sorted(pieces)))
        positions += [gap.start for gap in gaps]
        pieces += gaps
        pieces = [pieces[n] for n in sorted(range(len(pieces)), key=positions.__getitem__)]
    for window in _windows(pieces):
        for run in _runs(sorted(window)):
            yield from _cut(run)


def _positions(spans: list[Span]) -> list[int]:
    """Return the position, in bytes of the weight file, at which each span is to be fetched.

    This is the span's own first byte, or that of its weight if the span lies behind it or in another file.
    """
    positions = []
    file, position = spans[0].file if spans else "", 0
    for span in spans:
        if not span.aside:
            file, position = span.file, span.start
        positions.append(span.start if span.file == file and span.start < position else position)
    return positions


def _gaps(pieces: list[_BlockPiece]) -> Iterator[_BlockPiece]:
    """Yield the gaps between sorted pieces that are small enough to be fetched too."""
    allowance = sum(piece.stop - piece.start for piece in pieces) // _GAP_SHARE
    file, end = "", 0
    for piece in pieces:
        if piece.file == file and 0 < piece.start - end <= min(allowance, _MAX_GAP_BYTES):
            allowance -= piece.start - end
            yield _BlockPiece(file, end, piece.start, False)
        file, end = piece.file, max(end, piece.stop) if piece.file == file else piece.stop


def _windows(pieces: list[_BlockPiece]) -> Iterator[list[_BlockPiece]]:
    """Yield the pieces in order, in lists of about _WINDOW_BYTES."""
    window: list[_BlockPiece] = []
    nbytes = 0
    for piece in pieces:
        window.append(piece)
        nbytes += piece.stop - piece.start
        if nbytes >= _WINDOW_BYTES:
            yield window
            window, nbytes = [], 0
    yield window


def _runs(pieces: list[_BlockPiece]) -> Iterator[list[_BlockPiece]]:
    """Yield lists of sorted pieces that touch or overlap."""
    run: list[_BlockPiece] = []
    end = 0
    for piece in pieces:
        if run and (piece.file != run[0].file or piece.start > end):
            yield run
            run, end = [], 0
        run.append(piece)
        end = max(end, piece.stop)
    if run:
        yield run


def _cut(run: list[_BlockPiece]) -> Iterator[FetchRange]:
    """Yield blocks of at most BLOCK_BYTES that cover a run, each with its number of wanted bytes.

    A piece that crosses the end of a block counts in both, with its bytes in each.
    """
    waiting = deque(run)
    start, stop = run[0].start, max(piece.stop for piece in run)
    while start < stop:
        end = min((start + BLOCK_BYTES) // PAGE_BYTES * PAGE_BYTES, stop)
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
    """Observes the blocks of a run. Its methods may raise to end the run.

    `expect` gets all blocks of one weight file before they are fetched, `take` each block with its data.
    """

    def expect(self, blocks: list[FetchRange]) -> None: ...

    def take(self, block: FetchRange, data: memoryview) -> None: ...


class _Buffers:
    """Memory of blocks. It is used again once nobody holds a view of it: fresh memory is cleared page by page first."""

    def __init__(self) -> None:
        self._free: deque[bytearray] = deque()

    def get(self, nbytes: int) -> memoryview:
        """Return a buffer of `nbytes` bytes, at most BLOCK_BYTES, with any content."""
        if nbytes <= BLOCK_BYTES // 2:  # of many small blocks, whole buffers would exceed the budget
            return memoryview(bytearray(nbytes))
        try:
            memory = self._free.popleft()
        except IndexError:
            memory = bytearray(BLOCK_BYTES)
        held = (ctypes.c_char * BLOCK_BYTES).from_buffer(memory)
        weakref.finalize(held, self._free.append, memory).atexit = False
        return memoryview(held).cast("B")[:nbytes]


class Readahead:
    """Fetches ahead while its context is open. If `fetch` or `watcher` raises, fetching ends and each reader raises."""

    def __init__(self, fetch: Fetch, spans: Iterable[list[Span]], watcher: Watcher) -> None:
        """Prepare the read-ahead; the context starts it.

        Args:
            fetch: Fetches bytes of a file. Its event is set when the bytes are no longer needed.
            spans: The bytes that will be read, in the order of reading: one list per weight file.
            watcher: Gets each block before it can be read.
        """
        self._fetch, self._watcher = fetch, watcher
        self._upcoming = self._expected(spans)
        self._live: dict[str, list[FetchRange]] = defaultdict(list)
        self._given_up: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._buffered_nbytes = self._consumed = 0
        self._stuck_readers = 0
        self._is_over = False
        self._error: BaseException | None = None
        self._buffers = _Buffers()
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
            thread.join(_JOIN_SECONDS)  # a thread that waits for a dead server ends later, with its own timeout

    def readinto(self, file: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with bytes of `file` from `start` on. Bytes outside of all spans are fetched immediately.

        Raises the error that ended the fetching.
        """
        done = 0
        while done < len(buffer):
            offset = start + done
            found = self._await(file, offset)
            if found is None:
                self._give_up(file, offset, start + len(buffer))
                self._fetch(file, offset, buffer[done:], self._stopped)
                return
            block, data = found
            count = min(len(buffer) - done, block.stop - offset)
            buffer[done : done + count] = data[offset - block.start : offset - block.start + count]
            self._consume(block, count)
            done += count

    def _expected(self, spans: Iterable[list[Span]]) -> Iterator[FetchRange]:
        """Yield all blocks of the run, and announce those of each weight file to the watcher."""
        for of_file in spans:
            upcoming = list(blocks(of_file))
            self._watcher.expect(upcoming)
            yield from upcoming

    def _await(self, file: str, offset: int) -> tuple[FetchRange, memoryview] | None:
        """Wait for the block that contains byte `offset`, and return it with its data.

        Returns None if no span covers the byte, or if memory is exhausted first. If the block is beyond the budget,
        other readers usually make room. The reader lets fetching exceed the budget only if nobody reads for some time.
        """
        with self._changed:
            consumed, since = self._consumed, time.monotonic()
            while self._error is None:
                block = self._find(file, offset)
                if block is not None and block.data is not None:
                    return block, block.data
                if self._consumed != consumed:
                    consumed, since = self._consumed, time.monotonic()
                is_stuck = block is None and time.monotonic() - since >= _PATIENCE_SECONDS
                if block is None and (self._is_over or (is_stuck and self._buffered_nbytes >= 2 * BUDGET_BYTES)):
                    return None
                self._stuck_readers += is_stuck
                if is_stuck:
                    self._changed.notify_all()
                self._changed.wait(_PATIENCE_SECONDS)
                self._stuck_readers -= is_stuck
            raise self._error

    def _find(self, file: str, offset: int) -> FetchRange | None:
        """Return the block, fetched or on its way, that contains byte `offset`."""
        live = self._live[file]
        index = bisect_right(live, offset, key=_start) - 1
        return live[index] if index >= 0 and offset < live[index].stop else None

    def _consume(self, block: FetchRange, count: int) -> None:
        """Note that `count` bytes of a block were read, and free the block after the last one."""
        with self._changed:
            self._consumed += count
            block.wanted -= count
            self._free_if_read(block)

    def _free_if_read(self, block: FetchRange) -> None:
        if block.wanted <= 0 and block in self._live[block.file]:
            self._live[block.file].remove(block)
            block.data = None
            self._buffered_nbytes -= block.nbytes
            self._changed.notify_all()

    def _give_up(self, file: str, start: int, stop: int) -> None:
        """Note that a reader fetches these bytes itself: their blocks, also the later ones, are not kept for it."""
        with self._changed:
            self._given_up[file].append((start, stop))
            for block in list(self._live[file]):
                if (count := _overlap(block, start, stop)) > 0:
                    self._consume(block, count)

    def _work(self) -> None:
        """Fetch one block after the other, as one of the connections, until none is left or an error occurs."""
        try:
            while (block := self._next()) is not None:
                data = self._buffers.get(block.nbytes)
                self._fetch(block.file, block.start, data, self._stopped)
                self._watcher.take(block, data)
                with self._changed:
                    block.data = data
                    self._free_if_read(block)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _next(self) -> FetchRange | None:
        """Wait until the budget has room, and return the next block; None if none is left or the run ends."""
        with self._changed:
            while self._buffered_nbytes >= BUDGET_BYTES and not (self._stuck_readers or self._is_ending()):
                self._changed.wait()
            block = None if self._is_ending() else next(self._upcoming, None)
            if block is None:
                self._is_over = True
            else:
                given_up = self._given_up.get(block.file, ())
                block.wanted -= sum(max(0, _overlap(block, *span)) for span in given_up)
                live = self._live[block.file]
                live.insert(bisect_right(live, block.start, key=_start), block)
                self._buffered_nbytes += block.nbytes
            self._changed.notify_all()
            return block

    def _is_ending(self) -> bool:
        return self._stopped.is_set() or self._error is not None


def _overlap(block: FetchRange, start: int, stop: int) -> int:
    return min(block.stop, stop) - max(block.start, start)


def _start(block: FetchRange) -> int:
    return block.start
