"""Move the bytes of one step: read rows, cut, convert or decode them, hash each piece, and put it into its files."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from dsv4_shard.errors import InexactCast
from dsv4_shard.sharding.journal import Finished
from dsv4_shard.sharding.recipe import Fixed, Piece, Recipe, Slice, Step, pieces_of, row_runs, stripes
from dsv4_shard.sources.base import CHUNK_BYTES, OpenFile
from dsv4_shard.tensors.decoding import Decoded, Transform
from dsv4_shard.tensors.dtype_casts import Bytes
from dsv4_shard.tensors.geometry import Rectangle, whole_rectangle
from dsv4_shard.tensors.header import DTYPE_BITS

_PART_BYTES = 1 << 20
"""Bytes of padding below the rows that are made at a time."""


class Sink(Protocol):
    """Takes the bytes of output files. Called by many workers, never twice for the same byte.

    `put` receives the bytes for `offset` of output file number `file`. The buffer of `data` is reused after the call.
    A sink that compares returns the offset of the first byte that differs; None says that there is none.
    """

    def put(self, file: int, offset: int, data: memoryview) -> int | None: ...


class Moved(NamedTuple):
    """A step that was moved.

    Attributes:
        finished: What the journal records of it.
        bytes_read: Bytes read from the source.
        differing: (file number, offset) of each byte that the sink found to differ, one for each `put`.
    """

    finished: Finished
    bytes_read: int
    differing: tuple[tuple[int, int], ...]


class Mover:
    """Moves steps of `recipe`, one at a time. Each worker has its own.

    Args:
        recipe: The output files and the steps that fill them.
        files: The open source files, by name.
        sink: Receives the bytes of each output file.
        allow_inexact: Let a cast round.
        on_progress: Receives the bytes put since its last call.
        on_data: Receives (file number, offset, bytes) of each `put`.
        is_stopped: Asked after each chunk; a mover that is stopped leaves its step unfinished.
        keeps_cached: Whether the bytes that it reads stay in the page cache.
    """

    def __init__(
        self,
        recipe: Recipe,
        files: Mapping[str, OpenFile],
        sink: Sink,
        allow_inexact: bool,
        on_progress: Callable[[int], None],
        on_data: Callable[[int, int, memoryview], None],
        is_stopped: Callable[[], bool],
        *,
        keeps_cached: bool = False,
    ) -> None:
        self._recipe, self._files, self._sink = recipe, files, sink
        self._allow_inexact = allow_inexact
        self._on_progress, self._on_data = on_progress, on_data
        self._is_stopped = is_stopped
        self._reads_once = not keeps_cached
        self._buffer = np.empty(CHUNK_BYTES, np.uint8)  # takes no memory before it is filled, as a bytearray does
        self._bytes_read = 0
        self._differing: list[tuple[int, int]] = []

    def move(self, number: int) -> Moved | None:
        """Move step `number`. Returns None if the mover was stopped meanwhile.

        Raises InexactCast if a cast rounds and that is not allowed, and the errors of source and sink.
        """
        self._bytes_read, self._differing = 0, []
        step = self._recipe.steps[number]
        pieces = [_Running(piece) for piece in pieces_of(step)]
        if step.transform is None or step.makes_scale:
            inexact = self._move(step, pieces)
        else:
            inexact = self._decode(step, step.transform, pieces)
        if self._is_stopped():
            return None
        digests = b"".join(piece.hash.digest() for piece in pieces)
        nbytes = sum(piece.done * len(piece.piece.files) for piece in pieces)
        return Moved(Finished(number, digests, inexact, nbytes), self._bytes_read, tuple(self._differing))

    def put_fixed(self, fixed: Fixed) -> Moved:
        """Put a tensor that comes from no checkpoint. The number of the `Finished` means nothing."""
        self._bytes_read, self._differing = 0, []
        piece = _Running(Piece(None, fixed.tensor, 0, 0, (fixed.file,)))
        self._append(piece, np.frombuffer(fixed.data, np.uint8))
        return Moved(Finished(-1, piece.hash.digest(), 0, piece.done), 0, tuple(self._differing))

    def _read(self, name: str, start: int, buffer: memoryview) -> None:
        self._files[name].readinto(start, buffer, once=self._reads_once)
        self._bytes_read += len(buffer)

    def _append(self, running: "_Running", data: Bytes) -> None:
        """Hash the next bytes of a piece and put them into each of its files.

        `data` is a uint8 array of any shape; its bytes are taken in C order.
        """
        data = np.ascontiguousarray(data)
        view = data.data.cast("B")
        piece = running.piece
        running.hash.update(view)
        for file in piece.files:
            offset = self._recipe.offset(file, piece.tensor) + piece.at + running.done
            differs = self._sink.put(file, offset, view)
            if differs is not None:
                self._differing.append((file, differs))
            self._on_data(file, offset, view)
        running.done += len(view)
        self._on_progress(len(view) * len(piece.files))

    def _move(self, step: Step, pieces: list["_Running"]) -> int:
        """Copy the rows of a step without decoding. Each cut gets its part of each chunk, padded and then cast.

        New scales are made from whole stripes, of which chunks and cuts consist.
        """
        for row, matrix in self._chunks(step):
            for piece in pieces:
                area = piece.cut.rectangle
                start, stop = max(row, area.row_start), min(row + len(matrix), area.row_stop)
                if start < stop:
                    part = _columns(matrix[start - row : stop - row], area)
                    padded = _padded(part, piece.cut.pad_cols, step.fill)
                    self._append(piece, _rescaled(padded, step) if step.makes_scale else _converted(padded, step))
        for piece in pieces:
            for nbytes in _parts(piece.cut.pad_rows * piece.cut.row_nbytes):
                if not self._is_stopped():
                    self._append(piece, _converted(_filled(1, nbytes, step.fill), step))
        return 0

    def _chunks(self, step: Step) -> Iterator[tuple[int, Bytes]]:
        """Read the rows that a step needs, each once; yield (number of the first row, uint8 `[rows, row bytes]`)."""
        tensor, runs, buffer = step.source, row_runs(step), self._buffer
        row_nbytes = whole_rectangle(tensor.dtype, tensor.shape).stop
        if row_nbytes == 0 or not runs:
            return
        if step.repeat > 1:
            runs = [(0, tensor.shape[0])]
        growth = step.repeat**2 * (step.conversion.growth[0] if step.conversion else 1)
        each = step.transform.block if step.transform else 1
        if row_nbytes * each > len(buffer):
            buffer = np.empty(row_nbytes * each, np.uint8)
        rows_at_once = max(1, len(buffer) // (row_nbytes * growth * each)) * each
        for first, last in runs:
            for row in range(first, last, rows_at_once):
                if self._is_stopped():
                    return
                count = min(rows_at_once, last - row)
                rows = buffer[: count * row_nbytes].reshape(count, row_nbytes)
                self._read(tensor.file, tensor.start + row * row_nbytes, rows.data.cast("B"))
                yield row * step.repeat, _repeated(rows, step) if step.repeat > 1 else rows

    def _decode(self, step: Step, transform: Transform, pieces: list["_Running"]) -> int:
        """Decode a weight and its scale, stripe by stripe; return the number of inexact values.

        Raises InexactCast if there are any and they are not allowed.
        """
        inexact = 0
        for piece in pieces:
            for decoded in self._stripes(step, transform, piece):
                inexact += decoded.inexact
                self._append(piece, decoded.weight)
        if inexact and not self._allow_inexact:
            raise InexactCast(f"{step.source.name}: {inexact:,} of its values do not fit FP8 exactly")
        return inexact

    def _stripes(self, step: Step, transform: Transform, piece: "_Running") -> Iterator[Decoded]:
        """Read the rows of a piece a few whole stripes at a time, together with their scales, and decode them."""
        tensor, scale = step.source, step.scale
        assert scale is not None, "recipes give every transform its scale"
        row_nbytes = whole_rectangle(tensor.dtype, tensor.shape).stop
        scale_row_nbytes = whole_rectangle(scale.dtype, scale.shape).stop
        for row, rows, scale_row, scale_rows in stripes(step, piece.cut.rectangle):
            if self._is_stopped():
                return
            raw = np.empty((rows, row_nbytes), np.uint8)
            self._read(tensor.file, tensor.start + row * row_nbytes, raw.data.cast("B"))
            raw_scale = np.empty((scale_rows, scale_row_nbytes), np.uint8)
            self._read(scale.file, scale.start + scale_row * scale_row_nbytes, raw_scale.data.cast("B"))
            yield transform.apply(raw, raw_scale, scale.dtype)


class _Running:
    """A piece on its way to the output files.

    Attributes:
        piece: The piece.
        hash: Running xxh3-128 of the bytes so far.
        done: Bytes put so far.
    """

    __slots__ = ("done", "hash", "piece")

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.hash = xxhash.xxh3_128()
        self.done = 0

    @property
    def cut(self) -> Slice:
        """The cut of the source. Raises AssertionError for a tensor that comes from no checkpoint."""
        assert self.piece.cut is not None, "steps move cuts"
        return self.piece.cut


def _repeated(rows: Bytes, step: Step) -> Bytes:
    """Rows of a scale, uint8 `[rows, row bytes]`, with each element repeated along both axes."""
    items = rows.view(f"V{DTYPE_BITS[step.source.dtype] // 8}")
    repeated = np.ascontiguousarray(items.repeat(step.repeat, axis=0).repeat(step.repeat, axis=1))
    return repeated.view(np.uint8).reshape(len(repeated), -1)


def _parts(nbytes: int) -> Iterator[int]:
    """The sizes of parts of `nbytes`, of whole elements and about a MiB each."""
    return (min(_PART_BYTES, nbytes - start) for start in range(0, nbytes, _PART_BYTES))


def _columns(rows: Bytes, area: Rectangle) -> Bytes:
    """The columns of `area` from `rows`, as a contiguous array. Whole rows are returned without a copy.

    Equal narrow columns (96 bytes for FP4 `w2` at TP16) are copied as one item per row, because a copy byte by byte is
    slower.

    Args:
        rows: uint8 `[rows, row bytes]`.
        area: The rectangle; only its byte range `[start, stop)` within a row counts.

    Returns:
        uint8 `[rows, area.stop - area.start]`.
    """
    width = area.stop - area.start
    if width == rows.shape[1]:
        return rows
    if width and rows.shape[1] % width == 0 and area.start % width == 0:
        items = rows.view(f"V{width}")[:, area.start // width]
        return np.ascontiguousarray(items).view(np.uint8).reshape(len(rows), width)
    return np.ascontiguousarray(rows[:, area.start : area.stop])


def _padded(rows: Bytes, pad_cols: int, fill: bytes) -> Bytes:
    """`rows`, uint8 `[rows, row bytes]`, with `pad_cols` bytes of `fill` appended to each row."""
    if not pad_cols:
        return rows
    return np.concatenate([rows, _filled(len(rows), pad_cols, fill)], axis=1)


def _filled(rows: int, row_nbytes: int, fill: bytes) -> Bytes:
    """uint8 `[rows, row_nbytes]` that repeats `fill`, one element of the source's dtype."""
    return np.frombuffer(fill * (rows * row_nbytes // len(fill)), np.uint8).reshape(rows, row_nbytes)


def _converted(rows: Bytes, step: Step) -> Bytes:
    """The bytes of `rows` in the step's target dtype.

    `rows` is uint8 `[rows, row bytes]`. Without a conversion it is returned unchanged; with one, the result is a flat
    uint8 array.
    """
    return step.conversion.apply(np.ascontiguousarray(rows).reshape(-1)) if step.conversion else rows


def _rescaled(rows: Bytes, step: Step) -> Bytes:
    """The new scales for the stored scales `rows`, uint8 `[rows, row bytes]`, of whole stripes."""
    assert step.transform is not None
    assert step.transform.rescale is not None, "only transforms that have a dtype for scales make them"
    return step.transform.rescale(np.ascontiguousarray(rows))
