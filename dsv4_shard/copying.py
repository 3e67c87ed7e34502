"""Moves a recipe's bytes: each source byte is read once, scattered to all ranks' files, and hashed on its way.

Workers take steps in the order of the source's bytes. Each holds one chunk of rows at a time, so memory is bounded by
workers × chunk, whatever the size of a tensor. Where the bytes go is the sink's affair: reshard's sink writes them,
verify's sink compares them with what stands there.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from dsv4_shard.blocks import Rectangle, whole_rectangle
from dsv4_shard.errors import InexactCast, SourceChanged
from dsv4_shard.recipe import Recipe, Step, Target
from dsv4_shard.sources import LocalFile, LocalSource
from dsv4_shard.transforms import Bytes, Transform

CHUNK_BYTES = 8 << 20
"""Bytes that a worker reads at a time; larger chunks fall out of the CPU's cache and are slower."""

MAX_WORKERS = 8


class Sink(Protocol):
    """Takes the bytes of output files. Called from many threads, never twice for the same byte."""

    def put(self, file: int, offset: int, data: memoryview) -> None: ...


class PieceDigest(NamedTuple):
    """The xxh3-128 of a piece of an output file: bytes `[start, stop)` of file number `file`, within `tensor`."""

    file: int
    tensor: str
    start: int
    stop: int
    digest: str


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a run did: digests of all pieces, and the values that lost precision, by source tensor."""

    digests: tuple[PieceDigest, ...]
    inexact: dict[str, int]
    bytes_read: int
    bytes_put: int


def default_workers() -> int:
    """As many as the CPUs that this process may use; more only waits for the disk."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


def copy(
    recipe: Recipe,
    source: LocalSource,
    sink: Sink,
    workers: int,
    on_progress: Callable[[int], None] = lambda _: None,
    *,
    allow_inexact: bool = False,
) -> CopyResult:
    """Run every step of `recipe`; `on_progress` gets the bytes put since it was last called, from any worker.

    Raises the first ShardError that a worker meets: InexactCast where a cast rounds and `allow_inexact` is off, and
    SourceChanged where a source file changed meanwhile.
    """
    with _open_files(source, recipe) as files:
        run = _Run(recipe, files, sink, on_progress, allow_inexact)
        if workers == 1:
            run.work()
        else:
            _in_threads(run, workers)
        changed = [line for file in files.values() if (line := file.changed())]
        if changed:
            raise SourceChanged(changed[0])
        return run.result()


def _in_threads(run: "_Run", workers: int) -> None:
    with ThreadPoolExecutor(workers, thread_name_prefix="copy") as pool:
        futures = [pool.submit(run.work) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            run.stop()
    for future in futures:
        future.result()


@contextmanager
def _open_files(source: LocalSource, recipe: Recipe) -> Iterator[dict[str, LocalFile]]:
    names = {step.source.file for step in recipe.steps} | {step.scale.file for step in recipe.steps if step.scale}
    with ExitStack() as stack:
        yield {name: stack.enter_context(source.open(name)) for name in sorted(names)}


class _Run:
    """One run's state: the steps not yet taken, and what was done."""

    def __init__(
        self,
        recipe: Recipe,
        files: dict[str, LocalFile],
        sink: Sink,
        on_progress: Callable[[int], None],
        allow_inexact: bool,
    ) -> None:
        self._steps = iter(recipe.steps)
        self._files = files
        self._sink = sink
        self._on_progress = on_progress
        self._allow_inexact = allow_inexact
        self._lock = threading.Lock()
        self._stopped = False
        self._digests: list[PieceDigest] = []
        self._inexact: dict[str, int] = {}
        self._bytes_read = 0
        self._bytes_put = 0

    def stop(self) -> None:
        """Let workers end after the chunk they are at."""
        self._stopped = True

    def result(self) -> CopyResult:
        return CopyResult(
            tuple(sorted(self._digests, key=lambda piece: (piece.file, piece.start))),
            dict(sorted(self._inexact.items())),
            self._bytes_read,
            self._bytes_put,
        )

    def work(self) -> None:
        """Take steps until there are none. A worker's buffer lives as long as the worker."""
        buffer = bytearray(CHUNK_BYTES)
        while not self._stopped:
            with self._lock:
                step = next(self._steps, None)
            if step is None:
                return
            try:
                pieces = self._decode(step, step.transform) if step.transform else self._move(step, buffer)
            except BaseException:
                self.stop()
                raise
            with self._lock:
                self._digests += pieces

    def _read(self, name: str, start: int, buffer: memoryview) -> None:
        self._files[name].readinto(start, buffer)
        with self._lock:
            self._bytes_read += len(buffer)

    def _put(self, targets: list[tuple[int, int]], at: int, data: Bytes) -> None:
        """The same bytes to every (file, offset) of `targets`, `at` bytes into each."""
        view = data.data.cast("B")
        for file, offset in targets:
            self._sink.put(file, offset + at, view)
        with self._lock:
            self._bytes_put += len(view) * len(targets)
        self._on_progress(len(view) * len(targets))

    def _move(self, step: Step, buffer: bytearray) -> list[PieceDigest]:
        """Bytes as they are: rows are read once, in chunks, and each rectangle gets its part of every chunk."""
        tensor = step.source
        row_nbytes = whole_rectangle(tensor.dtype, tensor.shape).stop
        pieces = [_Piece(rectangle, targets) for rectangle, targets in _by_rectangle(step.targets).items()]
        first = min(piece.rectangle.row_start for piece in pieces)
        last = max(piece.rectangle.row_stop for piece in pieces)
        if row_nbytes == 0 or first == last:
            return [digest for piece in pieces for digest in piece.digests()]
        if row_nbytes > len(buffer):
            buffer = bytearray(row_nbytes)
        rows_at_once = len(buffer) // row_nbytes
        for row in range(first, last, rows_at_once):
            if self._stopped:
                return []
            count = min(rows_at_once, last - row)
            view = memoryview(buffer)[: count * row_nbytes]
            self._read(tensor.file, tensor.start + row * row_nbytes, view)
            matrix = np.frombuffer(view, np.uint8).reshape(count, row_nbytes)
            for piece in pieces:
                start, stop = max(row, piece.rectangle.row_start), min(row + count, piece.rectangle.row_stop)
                if start < stop:
                    part = _columns(matrix[start - row : stop - row], piece.rectangle)
                    piece.hash.update(part.data)
                    at = (start - piece.rectangle.row_start) * (piece.rectangle.stop - piece.rectangle.start)
                    self._put(piece.places, at, part)
        return [digest for piece in pieces for digest in piece.digests()]

    def _decode(self, step: Step, transform: Transform) -> list[PieceDigest]:
        """A weight and its scale, decoded stripe by stripe."""
        tensor, scale = step.source, step.scale
        assert scale is not None, "recipes give every transform its scale"
        row_nbytes = whole_rectangle(tensor.dtype, tensor.shape).stop
        scale_row = whole_rectangle(scale.dtype, scale.shape).stop
        stripe = max(1, CHUNK_BYTES // (row_nbytes * transform.row_step)) * transform.row_step
        out: list[PieceDigest] = []
        inexact = 0
        for rectangle, targets in _by_rectangle(step.targets).items():
            weights = _Piece(rectangle, targets)
            scales = _Piece(rectangle, [t._replace(offset=t.scale_offset) for t in targets if t.scale_offset >= 0])
            for row in range(rectangle.row_start, rectangle.row_stop, stripe):
                if self._stopped:
                    return []
                count = min(stripe, rectangle.row_stop - row)
                raw = np.empty((count, row_nbytes), np.uint8)
                self._read(tensor.file, tensor.start + row * row_nbytes, raw.data.cast("B"))
                scale_start = row // transform.row_step * transform.scale_rows
                scale_count = -(-count // transform.row_step) * transform.scale_rows
                raw_scale = np.empty((scale_count, scale_row), np.uint8)
                self._read(scale.file, scale.start + scale_start * scale_row, raw_scale.data.cast("B"))
                decoded = transform.apply(raw, raw_scale, scale.dtype)
                inexact += decoded.inexact
                weights.append(decoded.weight, self._put)
                if decoded.scale is not None:
                    scales.append(decoded.scale, self._put)
            out += weights.digests()
            out += scales.digests(_scale_of)
        if inexact and not self._allow_inexact:
            raise InexactCast(f"{tensor.name}: {inexact:,} of its values do not fit FP8 exactly")
        if inexact:
            with self._lock:
                self._inexact[tensor.name] = inexact
        return out


def _scale_of(weight_name: str) -> str:
    return weight_name.removesuffix("weight") + "scale"


def _by_rectangle(targets: tuple[Target, ...]) -> dict[Rectangle, list[Target]]:
    """Targets that get the same bytes, together: these are cut and hashed once."""
    groups: dict[Rectangle, list[Target]] = {}
    for target in targets:
        groups.setdefault(target.rectangle, []).append(target)
    return groups


def _columns(rows: Bytes, rectangle: Rectangle) -> Bytes:
    """The rectangle's columns of `rows`, contiguous. Whole rows are not copied.

    Equal narrow columns (96 bytes of FP4 `w2` at TP16) are copied as one item a row, not byte by byte.
    """
    width = rectangle.stop - rectangle.start
    if width == rows.shape[1]:
        return rows
    if rows.shape[1] % width == 0 and rectangle.start % width == 0:
        items = rows.view(f"V{width}")[:, rectangle.start // width]
        return np.ascontiguousarray(items).view(np.uint8)
    return np.ascontiguousarray(rows[:, rectangle.start : rectangle.stop])


class _Piece:
    """A rectangle on its way to one or several files: a running hash, and how far it got."""

    def __init__(self, rectangle: Rectangle, targets: list[Target]) -> None:
        self.rectangle = rectangle
        self.hash = xxhash.xxh3_128()
        self.places = [(target.file, target.offset) for target in targets]
        self._targets = targets
        self._done = 0

    def append(self, data: Bytes, put: Callable[[list[tuple[int, int]], int, Bytes], None]) -> None:
        """The next bytes of a decoded piece."""
        data = np.ascontiguousarray(data)
        self.hash.update(data.data)
        put(self.places, self._done, data)
        self._done += data.nbytes

    def digests(self, rename: Callable[[str], str] = lambda name: name) -> list[PieceDigest]:
        """One digest for each file that the piece is in."""
        digest = self.hash.hexdigest()
        nbytes = self._done or self.rectangle.nbytes
        return [PieceDigest(t.file, rename(t.tensor), t.offset, t.offset + nbytes, digest) for t in self._targets]
