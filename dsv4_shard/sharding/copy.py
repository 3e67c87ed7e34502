"""Run a recipe: read each source byte once, scatter it to the files of all ranks, and hash it on the way.

Workers take steps in the order of the source's bytes if it is remote, else in the order of the output's bytes, in which
they are hashed. Each worker holds one chunk of rows at a time, so memory is bounded by workers x chunk, whatever the
size of a tensor; recipes have no rows that are longer than a chunk. The sink decides where the bytes go: the sink of
`reshard` writes them, the sink of `verify` compares them with the files on disk.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import xxhash

from dsv4_shard.errors import InexactCast, SourceChanged
from dsv4_shard.models import scale_name
from dsv4_shard.sharding.file_hasher import FileHasher
from dsv4_shard.sharding.journal import Finished
from dsv4_shard.sharding.recipe import Fixed, Recipe, Slice, Step, output_order, row_runs, spans, stripes
from dsv4_shard.sources.base import CHUNK_BYTES, OpenFile, Source
from dsv4_shard.storage import DIGEST_BYTES, StagedFile
from dsv4_shard.tensors.decoding import Decoded, Transform
from dsv4_shard.tensors.dtype_casts import Bytes, Conversion
from dsv4_shard.tensors.geometry import Rectangle, whole_rectangle
from dsv4_shard.tensors.header import DTYPE_BITS

_PART_BYTES = 1 << 20
"""Bytes of padding below the rows that are made at a time."""


class Sink(Protocol):
    """Takes the bytes of output files. Called from many threads, never twice for the same byte.

    `put` receives the bytes for `offset` of output file number `file`. The buffer of `data` is reused after the call.
    """

    def put(self, file: int, offset: int, data: memoryview) -> None: ...


class CopyLog(Protocol):
    """Records each finished step. Called from many threads."""

    def note(self, finished: Finished) -> None: ...


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The digests of the output tensors, the values that lost precision, and the bytes read.

    The digest of a tensor of one piece is the xxh3-128 of its bytes. The digest of a tensor of several pieces is the
    xxh3-128 of the pieces' digests (16 bytes each, big-endian) in order.

    Attributes:
        digests: (file number, tensor name) -> digest in hex.
        inexact: Source tensor name -> number of elements that a cast rounded.
        bytes_read: Bytes read from the source.
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
    on_tensor: Callable[[int, str], None] = lambda *_: None,
    in_order: Collection[str] = (),
) -> CopyResult:
    """Run every step of `recipe` except the `finished` ones.

    Args:
        recipe: The output files and the steps that fill them.
        source: The checkpoint to read.
        sink: Receives the bytes of each output file.
        workers: Number of threads; 1 runs in the calling thread.
        on_progress: Receives the bytes put since its last call. Any worker may call it.
        allow_inexact: Let a cast round.
        finished: Steps that an earlier run finished. Their digests are reused.
        log: Records each step that this run finishes.
        on_tensor: Receives (file number, tensor name) of each output tensor whose bytes were all put, also by an
            earlier run. Any worker may call it.
        in_order: Source files that one worker each reads from beginning to end.

    Raises:
        InexactCast: A cast rounds and `allow_inexact` is off.
        SourceChanged: A source file changed during the run.
        ShardError: Any other error of a worker; the first one is raised.
    """
    order = range(len(recipe.steps)) if source.root is None else output_order(recipe)
    run = _CopyRun(recipe, sink, on_progress, allow_inexact, log, on_tensor, _batches(recipe, order, in_order))
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
    """Run the workers in threads; stop all after the first error, and raise it."""
    with ThreadPoolExecutor(workers, thread_name_prefix="copy") as pool:
        futures = [pool.submit(run.work) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            run.stop()
    for future in futures:
        future.result()


def _batches(recipe: Recipe, order: Sequence[int], in_order: Collection[str]) -> Iterator[Sequence[int]]:
    """The numbers of the steps, all at once for each source file in `in_order`, then one by one in this order."""
    for file, numbers in groupby(range(len(recipe.steps)), key=lambda number: recipe.steps[number].source.file):
        if file in in_order:
            yield list(numbers)
    yield from ([number] for number in order if recipe.steps[number].source.file not in in_order)


def files_of(recipe: Recipe) -> list[str]:
    """Names of the source files that the steps read, sorted."""
    return sorted({one.file for step in recipe.steps for one in (step.source, step.scale) if one})


class _CopyRun:
    """State of one run: the steps that are left, and the results so far."""

    def __init__(
        self,
        recipe: Recipe,
        sink: Sink,
        on_progress: Callable[[int], None],
        allow_inexact: bool,
        log: CopyLog | None,
        on_tensor: Callable[[int, str], None],
        batches: Iterable[Sequence[int]],
    ) -> None:
        self._recipe = recipe
        self._is_finished = bytearray(len(recipe.steps))
        self._batches = iter(batches)
        self._log = log
        self._on_tensor = on_tensor
        self._slots_left: dict[tuple[int, str], int] = {}
        self._files: Mapping[str, OpenFile] = {}
        self._sink = sink
        self._on_progress = on_progress
        self._allow_inexact = allow_inexact
        self._lock = threading.Lock()
        self._stopped = False
        self._pieces: dict[tuple[int, str], bytearray] = {}
        self._digests: dict[tuple[int, str], str] = {}
        self._inexact: dict[str, int] = {}
        self._bytes_read = 0

    def skip(self, finished: Iterable[Finished]) -> None:
        """Mark steps as done that an earlier run finished, and keep their digests."""
        for step in finished:
            self._is_finished[step.number] = True
            self._keep(step, _pieces_of(self._recipe.steps[step.number]))

    def unfinished(self) -> Iterator[Step]:
        """The steps that are left, in order, as of this call."""
        done = bytes(self._is_finished)
        return (step for number, step in enumerate(self._recipe.steps) if not done[number])

    def open(self, files: Mapping[str, OpenFile]) -> None:
        """Set the files that the steps read from."""
        self._files = files

    def stop(self) -> None:
        """Make each worker end after its current chunk."""
        self._stopped = True

    def result(self) -> CopyResult:
        """The result of the run. Call it after all workers have ended."""
        return CopyResult(
            {key: self._digests[key] for key in sorted(self._digests)},
            dict(sorted(self._inexact.items())),
            self._bytes_read,
        )

    def work(self) -> None:
        """Take steps until none is left. Each worker allocates its buffer once."""
        buffer = np.empty(CHUNK_BYTES, np.uint8)  # takes no memory before it is filled, as a bytearray does
        try:
            while batch := self._next_batch():
                for number in batch:
                    if not self._stopped and not self._is_finished[number]:
                        self._take(number, buffer)
        except BaseException:
            self.stop()
            raise

    def _next_batch(self) -> Sequence[int]:
        """The numbers of the next steps for one worker; empty if none are left."""
        with self._lock:
            return () if self._stopped else next(self._batches, ())

    def _take(self, number: int, buffer: Bytes) -> None:
        step = self._recipe.steps[number]
        pieces = _pieces_of(step)
        inexact = self._decode(step, step.transform, pieces) if step.transform else 0
        if not step.transform:
            self._move(step, pieces, buffer)
        if not self._stopped:
            self._finish(number, pieces, inexact)

    def _finish(self, number: int, pieces: list["_Piece"], inexact: int) -> None:
        """Record a step after all of its pieces were put."""
        digests = b"".join(piece.hash.digest() for piece in pieces)
        step = Finished(number, digests, inexact, sum(piece.done * len(piece.places) for piece in pieces))
        with self._lock:
            self._keep(step, pieces)
        if self._log is not None:
            self._log.note(step)

    def _keep(self, step: Finished, pieces: list["_Piece"]) -> None:
        """Keep the digests and the inexact values of a finished step."""
        self._gather(pieces, step.digests)
        if step.inexact:
            self._inexact[self._recipe.steps[step.number].source.name] = step.inexact

    def _gather(self, pieces: list["_Piece"], digests: bytes) -> None:
        """Store the digests of pieces (`DIGEST_BYTES` each, concatenated) in the slots of their tensors."""
        for index, piece in enumerate(pieces):
            digest = digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
            for file, tensor, slot in piece.places:
                runs = self._recipe.files[file].pieces.get(tensor, ())
                if runs and not self._fill(file, tensor, sum(count for count, _ in runs), slot, digest):
                    continue
                whole = xxhash.xxh3_128_hexdigest(self._pieces.pop((file, tensor))) if runs else digest.hex()
                self._digests[file, tensor] = whole
                self._on_tensor(file, tensor)

    def _fill(self, file: int, tensor: str, slots: int, slot: int, digest: bytes) -> bool:
        """Store the digest of one piece of a tensor of several; return whether all are there."""
        kept = self._pieces.setdefault((file, tensor), bytearray(slots * DIGEST_BYTES))
        kept[slot * DIGEST_BYTES : (slot + 1) * DIGEST_BYTES] = digest
        left = self._slots_left.pop((file, tensor), slots) - 1
        if left:
            self._slots_left[file, tensor] = left
        return left == 0

    def _read(self, name: str, start: int, buffer: memoryview) -> None:
        self._files[name].readinto(start, buffer, once=True)
        with self._lock:
            self._bytes_read += len(buffer)

    def _append(self, piece: "_Piece", data: Bytes) -> None:
        """Hash the next bytes of a piece and put them into each of its files.

        `data` is a uint8 array of any shape; its bytes are taken in C order.
        """
        data = np.ascontiguousarray(data)
        view = data.data.cast("B")
        piece.hash.update(view)
        for file, tensor, _ in piece.places:
            self._sink.put(file, self._recipe.offset(file, tensor) + piece.at + piece.done, view)
        piece.done += len(view)
        self._on_progress(len(view) * len(piece.places))

    def put_fixed(self, fixed: Fixed) -> None:
        """Put a tensor that comes from no checkpoint."""
        piece = _Piece(None, 0, [(fixed.file, fixed.tensor, 0)])
        self._append(piece, np.frombuffer(fixed.data, np.uint8))
        self._gather([piece], piece.hash.digest())

    def _move(self, step: Step, pieces: list["_Piece"], buffer: Bytes) -> None:
        """Copy the rows of a step without decoding. Each cut gets its part of each chunk, padded and then cast."""
        areas = [cut.rectangle for piece in pieces if (cut := piece.cut) is not None]
        for row, matrix in self._chunks(step, buffer):
            for piece, area in zip(pieces, areas, strict=True):
                start, stop = max(row, area.row_start), min(row + len(matrix), area.row_stop)
                if start < stop:
                    part = _columns(matrix[start - row : stop - row], area)
                    self._append(piece, _converted(_padded(part, piece.pad_cols, step.fill), step.conversion))
        for piece in pieces:
            for nbytes in _parts(piece.pad_nbytes):
                if not self._stopped:
                    self._append(piece, _converted(_filled(1, nbytes, step.fill), step.conversion))

    def _chunks(self, step: Step, buffer: Bytes) -> Iterator[tuple[int, Bytes]]:
        """Read the rows that a step needs, each once; yield (number of the first row, uint8 `[rows, row bytes]`)."""
        tensor, runs = step.source, row_runs(step)
        row_nbytes = whole_rectangle(tensor.dtype, tensor.shape).stop
        if row_nbytes == 0 or not runs:
            return
        if step.repeat > 1:
            runs = [(0, tensor.shape[0])]
        if row_nbytes > len(buffer):
            buffer = np.empty(row_nbytes, np.uint8)
        growth = step.repeat**2 * (step.conversion.growth[0] if step.conversion else 1)
        rows_at_once = max(1, len(buffer) // (row_nbytes * growth))
        for first, last in runs:
            for row in range(first, last, rows_at_once):
                if self._stopped:
                    return
                count = min(rows_at_once, last - row)
                rows = buffer[: count * row_nbytes].reshape(count, row_nbytes)
                self._read(tensor.file, tensor.start + row * row_nbytes, rows.data.cast("B"))
                yield row * step.repeat, _repeated(rows, step) if step.repeat > 1 else rows

    def _decode(self, step: Step, transform: Transform, pieces: list["_Piece"]) -> int:
        """Decode a weight and its scale, stripe by stripe; return the number of inexact values.

        Raises InexactCast if there are any and the run does not allow them.
        """
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
        """Read the rows of a piece a few whole stripes at a time, together with their scales, and decode them."""
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
    """A cut on its way to the output files.

    Attributes:
        cut: The rectangle of the source, None for a tensor that comes from no checkpoint.
        at: Offset of the piece in the output tensor, in bytes.
        places: (file number, tensor name, slot) of each file that receives it.
        hash: Running xxh3-128 of the bytes so far.
        done: Bytes put so far.
    """

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
    """Number of pieces that a step makes. Each piece has a digest."""
    each = 2 if step.transform and step.transform.scale_dtype else 1
    return each * sum(len(landing.spread) for landing in step.landings)


def _pieces_of(step: Step) -> list[_Piece]:
    """The pieces of a step. A cut that goes to several files is one piece, so it is cast and hashed once.

    If a transform makes new scales, each piece of the weight is followed by the piece of its scales.
    """
    pieces = []
    for landing in step.landings:
        for cut, files in landing.spread:
            pieces.append(_Piece(cut, landing.at, [(file, landing.tensor, landing.slot) for file in files]))
            if step.transform and step.transform.scale_dtype:
                pieces.append(_Piece(cut, 0, [(file, scale_name(landing.tensor), 0) for file in files]))
    return pieces


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


def _converted(rows: Bytes, conversion: Conversion | None) -> Bytes:
    """The bytes of `rows` in the target dtype.

    `rows` is uint8 `[rows, row bytes]`. Without a conversion it is returned unchanged; with one, the result is a flat
    uint8 array.
    """
    return conversion.apply(np.ascontiguousarray(rows).reshape(-1)) if conversion else rows


class FileSink:
    """Writes pieces to staged files, and has them hashed. See `Sink`. An entry of None is a file that is complete."""

    def __init__(self, files: Sequence[StagedFile | None], hasher: FileHasher) -> None:
        self._files = files
        self._hasher = hasher

    def put(self, file: int, offset: int, data: memoryview) -> None:
        """Write `data` at byte `offset` of file number `file`; skip a file that is complete. Raises WriteFailed."""
        staged = self._files[file]
        if staged is not None:
            staged.write(offset, data)
        self._hasher.put(file, offset, data)

    def flush(self) -> None:
        """Wait until all bytes that were put are on disk. Raises WriteFailed."""
        for number, staged in enumerate(self._files):
            if staged is not None:
                staged.flush(keep_from=self._hasher.hashed(number))
