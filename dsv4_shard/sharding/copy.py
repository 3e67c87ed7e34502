"""Moves a recipe's bytes: each source byte is read once, scattered to all ranks' files, and hashed on its way.

Workers take steps in the order of the source's bytes. Each holds one chunk of rows at a time, so memory is bounded by
workers × chunk, whatever the size of a tensor. Where the bytes go is the sink's affair: reshard's sink writes them,
verify's sink compares them with what stands there.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import xxhash

from dsv4_shard.errors import InexactCast, SourceChanged
from dsv4_shard.models.names import scale_name
from dsv4_shard.sharding.journal import Finished
from dsv4_shard.sharding.recipe import Fixed, Recipe, Slice, Step, row_runs, spans, stripes
from dsv4_shard.sources.base import CHUNK_BYTES, OpenFile, Source
from dsv4_shard.storage.digests import DIGEST_BYTES
from dsv4_shard.storage.staged_file import StagedFile
from dsv4_shard.tensors.decoding import Bytes, Decoded, Transform
from dsv4_shard.tensors.dtype_casts import Conversion
from dsv4_shard.tensors.geometry import Rectangle, whole_rectangle
from dsv4_shard.tensors.header import DTYPE_BITS


class Sink(Protocol):
    """Takes the bytes of output files. Called from many threads, never twice for the same byte."""

    def put(self, file: int, offset: int, data: memoryview) -> None: ...


class CopyLog(Protocol):
    """Is told of each step as it is done. Called from many threads."""

    def note(self, finished: Finished) -> None: ...


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a run did: the xxh3-128 of every output tensor by (file number, name), and values that lost precision.

    A tensor's digest is that of its bytes where it came in one piece; where it came in several, it is that of the
    pieces' digests (16 bytes each, big-endian) in order.
    """

    digests: dict[tuple[int, str], str]
    inexact: dict[str, int]
    bytes_read: int


def copy(
    recipe: Recipe,
    source: Source,
    sink: Sink,
    workers: int,
    on_progress: Callable[[int], None] = lambda _: None,
    *,
    allow_inexact: bool = False,
    finished: Iterable[Finished] = (),
    log: CopyLog | None = None,
) -> CopyResult:
    """Run every step of `recipe` but the `finished` ones, of which their digests are taken; tell `log` of each.

    `on_progress` gets the bytes put since it was last called, from any worker. Raises the first ShardError that a
    worker meets: InexactCast where a cast rounds and `allow_inexact` is off, and SourceChanged where a source file
    changed meanwhile.
    """
    run = _CopyRun(recipe, sink, on_progress, allow_inexact, log)
    run.skip(finished)
    with source.reading(files_of(recipe), spans(run.unfinished())) as files:
        run.open(files)
        for fixed in recipe.fixed:
            run.put_fixed(fixed)
        if workers == 1:
            run.work()
        else:
            _in_threads(run, workers)
        changed = [line for file in files.values() if (line := file.changed())]
        if changed:
            raise SourceChanged(changed[0])
        return run.result()


def _in_threads(run: "_CopyRun", workers: int) -> None:
    with ThreadPoolExecutor(workers, thread_name_prefix="copy") as pool:
        futures = [pool.submit(run.work) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            run.stop()
    for future in futures:
        future.result()


def files_of(recipe: Recipe) -> list[str]:
    """Files of the source that hold what the steps read."""
    return sorted({one.file for step in recipe.steps for one in (step.source, step.scale) if one})


class _CopyRun:
    """One run's state: the steps not yet taken, and what was done."""

    def __init__(
        self,
        recipe: Recipe,
        sink: Sink,
        on_progress: Callable[[int], None],
        allow_inexact: bool,
        log: CopyLog | None,
    ) -> None:
        self._recipe = recipe
        self._is_finished = bytearray(len(recipe.steps))
        self._steps = ((n, step) for n, step in enumerate(recipe.steps) if not self._is_finished[n])
        self._log = log
        self._files: Mapping[str, OpenFile] = {}
        self._sink = sink
        self._on_progress = on_progress
        self._allow_inexact = allow_inexact
        self._lock = threading.Lock()
        self._stopped = False
        self._pieces: dict[tuple[int, str], bytearray] = {}
        self._inexact: dict[str, int] = {}
        self._bytes_read = 0

    def skip(self, finished: Iterable[Finished]) -> None:
        """Take steps as done that an earlier run finished."""
        for step in finished:
            self._is_finished[step.number] = True
            self._keep(step, _pieces_of(self._recipe.steps[step.number]))

    def unfinished(self) -> Iterator[Step]:
        """The steps to be taken, in order. What a run finishes while this is read, it may still give."""
        done = bytes(self._is_finished)
        return (step for number, step in enumerate(self._recipe.steps) if not done[number])

    def open(self, files: Mapping[str, OpenFile]) -> None:
        """Where steps read from now on."""
        self._files = files

    def stop(self) -> None:
        """Let workers end after the chunk they are at."""
        self._stopped = True

    def result(self) -> CopyResult:
        """What was done, after all workers have ended."""
        return CopyResult(
            {
                key: found.hex() if len(found) == DIGEST_BYTES else xxhash.xxh3_128_hexdigest(found)
                for key, found in sorted(self._pieces.items())
            },
            dict(sorted(self._inexact.items())),
            self._bytes_read,
        )

    def work(self) -> None:
        """Take steps until there are none. A worker's buffer lives as long as the worker."""
        buffer = bytearray(CHUNK_BYTES)
        while not self._stopped:
            with self._lock:
                number, step = next(self._steps, (0, None))
            if step is None:
                return
            try:
                pieces = _pieces_of(step)
                inexact = self._decode(step, step.transform, pieces) if step.transform else 0
                if not step.transform:
                    self._move(step, pieces, buffer)
                if not self._stopped:
                    self._finish(number, pieces, inexact)
            except BaseException:
                self.stop()
                raise

    def _finish(self, number: int, pieces: list["_Piece"], inexact: int) -> None:
        """All pieces of a step are where they belong."""
        digests = b"".join(piece.hash.digest() for piece in pieces)
        step = Finished(number, digests, inexact, sum(piece.done * len(piece.places) for piece in pieces))
        with self._lock:
            self._keep(step, pieces)
        if self._log is not None:
            self._log.note(step)

    def _keep(self, step: Finished, pieces: list["_Piece"]) -> None:
        """What is to be remembered of a finished step."""
        self._gather(pieces, step.digests)
        if step.inexact:
            self._inexact[self._recipe.steps[step.number].source.name] = step.inexact

    def _gather(self, pieces: list["_Piece"], digests: bytes) -> None:
        """Put the digests of pieces, one after another, beside those of their tensors' other pieces."""
        for index, piece in enumerate(pieces):
            digest = digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
            for file, tensor, slot in piece.places:
                runs = self._recipe.files[file].pieces.get(tensor, ((1, 0),))
                room = DIGEST_BYTES * sum(count for count, _ in runs)
                kept = self._pieces.setdefault((file, tensor), bytearray(room))
                kept[slot * DIGEST_BYTES : (slot + 1) * DIGEST_BYTES] = digest

    def _read(self, name: str, start: int, buffer: memoryview) -> None:
        self._files[name].readinto(start, buffer, once=True)
        with self._lock:
            self._bytes_read += len(buffer)

    def _append(self, piece: "_Piece", data: Bytes) -> None:
        """The next bytes of a piece: hash them, and put them into each of its files."""
        data = np.ascontiguousarray(data)
        view = data.data.cast("B")
        piece.hash.update(view)
        for file, tensor, _ in piece.places:
            self._sink.put(file, self._recipe.offset(file, tensor) + piece.at + piece.done, view)
        piece.done += len(view)
        self._on_progress(len(view) * len(piece.places))

    def put_fixed(self, fixed: Fixed) -> None:
        """A tensor that is in no checkpoint."""
        piece = _Piece(None, 0, [(fixed.file, fixed.tensor, 0)])
        self._append(piece, np.frombuffer(fixed.data, np.uint8))
        self._gather([piece], piece.hash.digest())

    def _move(self, step: Step, pieces: list["_Piece"], buffer: bytearray) -> None:
        """Bytes as they are, or converted one by one: each cut gets its part of every chunk of rows."""
        areas = [cut.rectangle for piece in pieces if (cut := piece.cut) is not None]
        for row, matrix in self._chunks(step, buffer):
            for piece, area in zip(pieces, areas, strict=True):
                start, stop = max(row, area.row_start), min(row + len(matrix), area.row_stop)
                if start < stop:
                    part = _columns(matrix[start - row : stop - row], area)
                    self._append(piece, _converted(_padded(part, piece.pad_cols, step.fill), step.conversion))
        for piece in pieces:
            if piece.pad_nbytes and not self._stopped:
                self._append(piece, _converted(_filled(1, piece.pad_nbytes, step.fill), step.conversion))

    def _chunks(self, step: Step, buffer: bytearray) -> Iterator[tuple[int, Bytes]]:
        """The rows that a step needs of its source, each read once: (number of the first row, rows × bytes)."""
        tensor, runs = step.source, row_runs(step)
        row_nbytes = whole_rectangle(tensor.dtype, tensor.shape).stop
        if row_nbytes == 0 or not runs:
            return
        if step.repeat > 1:
            yield 0, self._repeated(step)
            return
        if row_nbytes > len(buffer):
            buffer = bytearray(row_nbytes)
        rows_at_once = len(buffer) // row_nbytes
        for first, last in runs:
            for row in range(first, last, rows_at_once):
                if self._stopped:
                    return
                count = min(rows_at_once, last - row)
                view = memoryview(buffer)[: count * row_nbytes]
                self._read(tensor.file, tensor.start + row * row_nbytes, view)
                yield row, np.frombuffer(view, np.uint8).reshape(count, row_nbytes)

    def _repeated(self, step: Step) -> Bytes:
        """A whole scale, each element repeated along both axes. Scales of blocks are small."""
        tensor = step.source
        raw = np.empty(tensor.nbytes, np.uint8)
        self._read(tensor.file, tensor.start, raw.data.cast("B"))
        width = DTYPE_BITS[tensor.dtype] // 8
        items = raw.view(f"V{width}").reshape(tensor.shape)
        repeated = np.ascontiguousarray(items.repeat(step.repeat, axis=0).repeat(step.repeat, axis=1))
        return repeated.view(np.uint8).reshape(len(repeated), -1)

    def _decode(self, step: Step, transform: Transform, pieces: list["_Piece"]) -> int:
        """A weight and its scale, decoded stripe by stripe; returns how many values are inexact."""
        inexact = 0
        each = 2 if transform.scale_dtype else 1
        for weights, *scales in (pieces[first : first + each] for first in range(0, len(pieces), each)):
            for decoded in self._stripes(step, transform, weights):
                inexact += decoded.inexact
                self._append(weights, decoded.weight)
                for piece in scales:
                    assert decoded.scale is not None, "transforms that have a dtype for scales make them"
                    self._append(piece, decoded.scale)
        if inexact and not self._allow_inexact:
            raise InexactCast(f"{step.source.name}: {inexact:,} of its values do not fit FP8 exactly")
        return inexact

    def _stripes(self, step: Step, transform: Transform, piece: "_Piece") -> Iterator[Decoded]:
        """The rows of a piece, some whole stripes at a time, read with their scales and decoded."""
        tensor, scale = step.source, step.scale
        assert scale is not None, "recipes give every transform its scale"
        assert piece.cut is not None, "decoded pieces are cuts"
        row_nbytes = whole_rectangle(tensor.dtype, tensor.shape).stop
        scale_row_nbytes = whole_rectangle(scale.dtype, scale.shape).stop
        for row, rows, scale_row, scale_rows in stripes(step, piece.cut.rectangle):
            if self._stopped:
                return
            raw = np.empty((rows, row_nbytes), np.uint8)
            self._read(tensor.file, tensor.start + row * row_nbytes, raw.data.cast("B"))
            raw_scale = np.empty((scale_rows, scale_row_nbytes), np.uint8)
            self._read(scale.file, scale.start + scale_row * scale_row_nbytes, raw_scale.data.cast("B"))
            yield transform.apply(raw, raw_scale, scale.dtype)


class _Piece:
    """A cut on its way: which (file, tensor, slot) get it, where in the tensor, a running hash, and how far it got."""

    __slots__ = ("at", "cut", "done", "hash", "places")

    def __init__(self, cut: Slice | None, at: int, places: list[tuple[int, str, int]]) -> None:
        self.cut = cut
        self.at = at
        self.places = places
        self.hash = xxhash.xxh3_128()
        self.done = 0

    @property
    def pad_cols(self) -> int:
        """Bytes of padding on the right of each row."""
        return self.cut.pad_cols if self.cut else 0

    @property
    def pad_nbytes(self) -> int:
        """Bytes of padding below the last row."""
        return self.cut.pad_rows * self.cut.row_nbytes if self.cut else 0


def pieces_of(step: Step) -> int:
    """How many pieces a step makes, each with a digest."""
    each = 2 if step.transform and step.transform.scale_dtype else 1
    return each * sum(len(landing.spread) for landing in step.landings)


def _pieces_of(step: Step) -> list[_Piece]:
    """The pieces of a step; a cut that goes to several files is one, so that it is converted and hashed once.

    Where a transform makes new scales, each piece of the weight is followed by theirs.
    """
    pieces = []
    for landing in step.landings:
        for cut, files in landing.spread:
            pieces.append(_Piece(cut, landing.at, [(file, landing.tensor, landing.slot) for file in files]))
            if step.transform and step.transform.scale_dtype:
                pieces.append(_Piece(cut, 0, [(file, scale_name(landing.tensor), 0) for file in files]))
    return pieces


def _columns(rows: Bytes, area: Rectangle) -> Bytes:
    """The rectangle's columns of `rows`, contiguous. Whole rows are not copied.

    Equal narrow columns (96 bytes of FP4 `w2` at TP16) are copied as one item a row, not byte by byte.
    """
    width = area.stop - area.start
    if width == rows.shape[1]:
        return rows
    if width and rows.shape[1] % width == 0 and area.start % width == 0:
        items = rows.view(f"V{width}")[:, area.start // width]
        return np.ascontiguousarray(items).view(np.uint8).reshape(len(rows), width)
    return np.ascontiguousarray(rows[:, area.start : area.stop])


def _padded(rows: Bytes, pad_cols: int, fill: bytes) -> Bytes:
    """`rows` with `pad_cols` bytes of `fill` on the right of each."""
    if not pad_cols:
        return rows
    return np.concatenate([rows, _filled(len(rows), pad_cols, fill)], axis=1)


def _filled(rows: int, row_nbytes: int, fill: bytes) -> Bytes:
    """Rows of nothing but `fill`."""
    return np.frombuffer(fill * (rows * row_nbytes // len(fill)), np.uint8).reshape(rows, row_nbytes)


def _converted(rows: Bytes, conversion: Conversion | None) -> Bytes:
    return conversion.apply(np.ascontiguousarray(rows).reshape(-1)) if conversion else rows


class FileSink:
    """Writes pieces to the staged files; those that are None have all their bytes. See `copying.Sink`."""

    def __init__(self, files: Sequence[StagedFile | None]) -> None:
        self._files = files

    def put(self, file: int, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` of file number `file`, unless it is there. Raises WriteFailed."""
        staged = self._files[file]
        if staged is not None:
            staged.write(offset, data)

    def flush(self) -> None:
        """Wait until all that was put is on disk. Raises WriteFailed."""
        for staged in self._files:
            if staged is not None:
                staged.flush()
