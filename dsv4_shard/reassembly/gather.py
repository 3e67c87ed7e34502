"""Rows of a checkpoint's tensor, gathered from its pieces in rank files: a recipe read backwards.

Each piece is read once from each rank that has it. These checks are made on the way: copies on several ranks are equal,
padding holds its fill, all repeats of a scale are equal, and a cast can be undone without loss. If the digests of the
written tensors are known, they are checked for all pieces that are read whole.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

import numpy as np
import xxhash

from dsv4_shard.errors import BadPadding, DamagedRanks, NotConverted, RanksDisagree
from dsv4_shard.reassembly.open_files import RankFiles
from dsv4_shard.sharding.recipe import Destination, Recipe, Slice, Step
from dsv4_shard.sources.base import CHUNK_BYTES
from dsv4_shard.storage import DIGEST_BYTES, digest_of
from dsv4_shard.tensors.dtype_casts import Bytes, Conversion
from dsv4_shard.tensors.geometry import whole_rectangle
from dsv4_shard.tensors.header import DTYPE_BITS, Tensor


class _Rows(NamedTuple):
    """Rows `[first, stop)` of a tensor. `is_last` tells whether they include the last row."""

    first: int
    stop: int
    is_last: bool


@dataclass(slots=True)
class _Trail:
    """How far a thread has read a tensor, and the running digests of its pieces."""

    next_row: int
    hashes: list[xxhash.xxh3_128]


class _PieceDigest(NamedTuple):
    """The digest of piece `slot` of a tensor in file number `file`, as it was read."""

    file: int
    tensor: str
    slot: int
    digest: bytes


@dataclass(slots=True)
class _Pending:
    """The digests of an output tensor's pieces that are known so far, and the slots that are left."""

    digests: bytearray
    left: set[int] = field(default_factory=set)


class Gatherer:
    """Reads a checkpoint's tensors from rank files. Thread-safe.

    Args:
        recipe: A recipe of all ranks without transforms.
        files: The rank files.
        written: For each file, tensor name -> digest in the manifest; None if there is no manifest.
    """

    def __init__(self, recipe: Recipe, files: RankFiles, written: Sequence[Mapping[str, str]] | None) -> None:
        self._recipe, self.files, self._written = recipe, files, written
        self._known: dict[str, Step | tuple[Step, ...]] = {}
        """Tensor -> the steps that moved it; a tuple only if there are several, since it takes 60 bytes."""
        for step in recipe.steps:
            others = self._steps(step.source.name)
            self._known[step.source.name] = (*others, step) if others else step
        self._local = threading.local()
        self._lock = threading.Lock()
        self._pending: dict[tuple[int, str], _Pending] = {}
        self._deferred: list[_PieceDigest] | None = None

    def _steps(self, name: str) -> tuple[Step, ...]:
        """The steps that moved a tensor."""
        known = self._known.get(name, ())
        return known if isinstance(known, tuple) else (known,)

    def read(self, tensor: Tensor, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `tensor` from byte `start` on.

        Raises ReadFailed, and a BadRanks if the ranks contradict each other or the manifest.
        """
        height, row_nbytes = _size(tensor)
        first, stop = start // row_nbytes, -(-(start + len(buffer)) // row_nbytes)
        is_whole = start % row_nbytes == 0 and len(buffer) % row_nbytes == 0
        matrix = np.frombuffer(buffer, np.uint8) if is_whole else np.empty((stop - first) * row_nbytes, np.uint8)
        matrix = matrix.reshape(-1, row_nbytes)
        rows_at_once = max(1, CHUNK_BYTES // (row_nbytes * self._growth(tensor.name)))
        for row in range(first, stop, rows_at_once):
            end = min(row + rows_at_once, stop)
            self._read_rows(tensor, _Rows(row, end, end == height), matrix[row - first : end - first])
        if not is_whole:
            skipped = start - first * row_nbytes
            buffer[:] = matrix.reshape(-1)[skipped : skipped + len(buffer)].data

    def check_fixed(self) -> None:
        """Check the tensors that come from no checkpoint against the layout's constants. Raises DamagedRanks."""
        with self.files.in_use():
            for fixed in self._recipe.fixed:
                start = self._recipe.offset(fixed.file, fixed.tensor)
                for file in self.files.copies(fixed.file):
                    if file.read(start, start + len(fixed.data)) != fixed.data:
                        raise DamagedRanks(f"{file.name}: {fixed.tensor}: not what the engine's layout has there")

    def _growth(self, name: str) -> int:
        """How many times the bytes of a tensor its bytes in rank files are, at most."""
        steps = self._steps(name)
        return max(step.repeat**2 * (step.conversion.growth[0] if step.conversion else 1) for step in steps)

    def _read_rows(self, tensor: Tensor, rows: _Rows, out: Bytes) -> None:
        """Copy rows of a tensor into `out`, uint8 `[rows, row bytes]`, and compare all places that hold them."""
        trail = self._trail(tensor.name, rows.first)
        is_placed = False
        for step, parts in self._wholes(tensor.name, trail):
            gathering = _Gathering(self._recipe, self.files, step, parts)
            matrix = gathering.rows(rows)
            if not is_placed:
                out[:] = matrix
            elif not np.array_equal(out, matrix):
                raise RanksDisagree(f"{tensor.name}: {gathering.tensor} differs from the other tensor made of it")
            is_placed = True
        if trail is None:
            return
        trail.next_row = rows.stop
        if rows.is_last:
            del self._local.trails[tensor.name]
            self._settle(tensor.name, trail.hashes)

    def _wholes(self, name: str, trail: _Trail | None) -> Iterator[tuple[Step, list["_Part"]]]:
        """The destinations that each hold a whole tensor: the first step, and the parts of its rows."""
        hashes = iter(trail.hashes) if trail else repeat(None)
        wholes: list[tuple[Step, dict[object, list[_Part]]]] = []
        for step in self._steps(name):
            if not step.part:
                wholes.append((step, {}))
            first, parts = wholes[-1]
            alone = {landing.tensor for landing in first.landings}
            for number, landing in enumerate(step.landings):
                # A step without parts may land in one tensor twice.
                key = landing.tensor if step.part or len(alone) == len(first.landings) else number
                held = [_Part(landing, cut, files, next(hashes)) for cut, files in landing.spread]
                parts.setdefault(key, []).extend(held)
        for step, of_landing in wholes:
            for held in of_landing.values():
                yield step, held

    def _trail(self, name: str, first: int) -> _Trail | None:
        """The trail of a tensor that this thread reads in order from its first row; None otherwise."""
        if self._written is None:
            return None
        if not hasattr(self._local, "trails"):
            self._local.trails = {}
        trails: dict[str, _Trail] = self._local.trails
        if first == 0:
            count = sum(len(landing.spread) for step in self._steps(name) for landing in step.landings)
            trails[name] = _Trail(0, [xxhash.xxh3_128() for _ in range(count)])
        elif name in trails and trails[name].next_row != first:
            del trails[name]
        return trails.get(name)

    def _settle(self, name: str, hashes: list[xxhash.xxh3_128]) -> None:
        """Record the digests of a tensor's pieces after its last row. Raises DamagedRanks."""
        pieces = [(landing, files) for step in self._steps(name) for landing in step.landings
                  for _, files in landing.spread]  # fmt: skip
        found = [_PieceDigest(file, landing.tensor, landing.slot, running.digest())
                 for (landing, files), running in zip(pieces, hashes, strict=True) for file in files]  # fmt: skip
        if self._deferred is None:
            self.settle(found)
        else:
            self._deferred += found

    def defer(self) -> None:
        """See `sources.base.Witness`."""
        self._deferred = []

    def seen(self) -> list[_PieceDigest]:
        """See `sources.base.Witness`."""
        found, self._deferred = self._deferred or [], []
        return found

    def settle(self, seen: Iterable[_PieceDigest]) -> None:
        """See `sources.base.Witness`. Raises DamagedRanks."""
        for file, tensor, slot, digest in seen:
            digests = self._put(file, tensor, slot, digest)
            if digests is not None:
                self._hold(file, tensor, digests)

    def _put(self, file: int, tensor: str, slot: int, digest: bytes) -> bytes | None:
        """Record the digest of a piece. Returns all digests of its output tensor once none is missing, else None."""
        runs = self._recipe.files[file].pieces.get(tensor, ((1, 0),))
        count = sum(number for number, _ in runs)
        with self._lock:
            blank = _Pending(bytearray(DIGEST_BYTES * count), set(range(count)))
            pending = self._pending.setdefault((file, tensor), blank)
            pending.digests[slot * DIGEST_BYTES : (slot + 1) * DIGEST_BYTES] = digest
            pending.left.discard(slot)
            if pending.left:
                return None
            del self._pending[file, tensor]
        return bytes(pending.digests)

    def _hold(self, file: int, tensor: str, digests: bytes) -> None:
        """Compare the digest of an output tensor with the manifest. Raises DamagedRanks."""
        found = digests.hex() if len(digests) == DIGEST_BYTES else digest_of(digests)
        if self._written is not None and self._written[file][tensor] != found:
            raise DamagedRanks(f"{self._recipe.files[file].name}: {tensor}: its bytes differ from what was written")


def _size(tensor: Tensor) -> tuple[int, int]:
    """(rows, bytes per row) of a tensor."""
    area = whole_rectangle(tensor.dtype, tensor.shape)
    return area.row_stop, area.stop


class _Part(NamedTuple):
    """A piece of a destination: its cut, the files that hold it, and its running digest, None if none is needed."""

    landing: Destination
    cut: Slice
    numbers: tuple[int, ...]
    hash: xxhash.xxh3_128 | None


@dataclass(frozen=True, slots=True)
class _Gathering:
    """One destination of a tensor: gathers rows of the source from its pieces, and hashes the pieces.

    Attributes:
        recipe: The recipe of the rank files.
        files: The rank files.
        step: The step that moved the source tensor, or its first part.
        parts: The pieces that hold all rows of the tensor.
    """

    recipe: Recipe
    files: RankFiles
    step: Step
    parts: Sequence[_Part]

    @property
    def tensor(self) -> str:
        """The tensor in the rank files."""
        return self.parts[0].landing.tensor

    def rows(self, rows: _Rows) -> Bytes:
        """Rows of the source tensor, uint8 `[rows, row bytes]`."""
        repeat = self.step.repeat
        _, row_nbytes = _size(self.step.source)
        first, stop = rows.first * repeat, rows.stop * repeat
        matrix = np.empty((stop - first, row_nbytes * repeat), np.uint8)
        left = matrix.size
        for one in self.parts:
            cut, area = one.cut, one.cut.rectangle
            begin, end = max(first, area.row_start), min(stop, area.row_stop)
            if begin < end and cut.row_nbytes:
                part = self._part(one, begin - area.row_start, end - begin)
                _place(part, matrix[begin - first : end - first], area.start)
                left -= part.size
            if rows.is_last and cut.pad_rows:
                self._check_rows_below(one)
        if left:
            raise ValueError(f"{self.step.source.name}: {left} bytes lie in no rank file")
        return self._reduced(matrix) if repeat > 1 else matrix

    def _part(self, part: _Part, row: int, count: int) -> Bytes:
        """Rows of a cut without padding, in the source's dtype.

        Args:
            part: The piece.
            row: First row, counted from the start of the cut.
            count: Number of rows.

        Returns:
            uint8 `[count, bytes per row of the rectangle]`.
        """
        cut = part.cut
        width = cut.rectangle.stop - cut.rectangle.start
        raw = self._read(part, row * self._stored(cut.row_nbytes), count * self._stored(cut.row_nbytes))
        restored = self._restored(raw, part).reshape(count, cut.row_nbytes)
        if cut.pad_cols:
            self._check_fill(restored[:, width:], part)
        return restored[:, :width]

    def _check_rows_below(self, part: _Part) -> None:
        """Check the padding rows below a cut, one chunk at a time. Raises BadPadding."""
        cut = part.cut
        width = self._stored(cut.row_nbytes)
        rows = cut.rectangle.row_stop - cut.rectangle.row_start
        rows_at_once = max(1, CHUNK_BYTES // width)
        for row in range(rows, cut.rows, rows_at_once):
            raw = self._read(part, row * width, min(rows_at_once, cut.rows - row) * width)
            self._check_fill(self._restored(raw, part), part)

    def _stored(self, nbytes: int) -> int:
        """Bytes in the rank files for `nbytes` of the source."""
        return self.step.conversion.nbytes(nbytes) if self.step.conversion else nbytes

    def _read(self, part: _Part, start: int, nbytes: int) -> Bytes:
        """Bytes `[start, start + nbytes)` of a piece as a flat uint8 array, read from each file that has it.

        Raises RanksDisagree if two files differ.
        """
        first: Bytes | None = None
        for file in part.numbers:
            offset = self.recipe.offset(file, part.landing.tensor) + part.landing.at + start
            for copy in self.files.copies(file):
                found = np.empty(nbytes, np.uint8)
                copy.readinto(offset, found.data, once=True)
                if first is None:
                    first, where, origin = found, copy.name, offset
                elif not np.array_equal(first, found):
                    at = int(np.argmax(first != found))
                    raise RanksDisagree(
                        f"{self.tensor}: {where} and {copy.name} must hold the same and differ, first at bytes "
                        f"{origin + at:,} and {offset + at:,}"
                    )
        assert first is not None, "every cut of a spread goes to some file"
        if part.hash is not None:
            part.hash.update(first.data)
        return first

    def _restored(self, raw: Bytes, part: _Part) -> Bytes:
        """The bytes of `raw` (flat uint8) in the source's dtype, as a flat uint8 array.

        Raises NotConverted if casting the result again does not give `raw`.
        """
        conversion = self.step.conversion
        if conversion is None:
            return raw
        restored = conversion.undo(raw)
        again = conversion.apply(restored)
        if not np.array_equal(again, raw):
            at = int(np.argmax(again != raw))
            raise NotConverted(f"{self._where(part)}: {_value(raw, at, conversion)}")
        return restored

    def _check_fill(self, padding: Bytes, part: _Part) -> None:
        """Check that `padding`, a uint8 array of any shape, repeats the step's fill. Raises BadPadding."""
        flat = np.ascontiguousarray(padding).reshape(-1, len(self.step.fill))
        if not (flat == np.frombuffer(self.step.fill, np.uint8)).all():
            raise BadPadding(f"{self._where(part)}: its padding holds other bytes than {self.step.fill.hex()}")

    def _reduced(self, matrix: Bytes) -> Bytes:
        """Every `repeat`-th element along both axes: the scale before it was repeated.

        `matrix` is uint8 `[rows * repeat, row bytes * repeat]`, the result uint8 `[rows, row bytes]`. Raises
        RanksDisagree if the repeats of an element differ.
        """
        repeat, width = self.step.repeat, DTYPE_BITS[self.step.source.dtype] // 8
        items = np.ascontiguousarray(matrix).view(f"V{width}")
        once = np.ascontiguousarray(items[::repeat, ::repeat])
        again = np.ascontiguousarray(once.repeat(repeat, axis=0).repeat(repeat, axis=1)).view(np.uint8)
        if not np.array_equal(again.reshape(matrix.shape), matrix):
            raise RanksDisagree(f"{self.tensor}: the repeats of a scale differ, for {self.step.source.name}")
        return once.view(np.uint8).reshape(len(once), -1)

    def _where(self, part: _Part) -> str:
        return f"{self.recipe.files[part.numbers[0]].name}: {self.tensor}"


def _value(raw: Bytes, at: int, conversion: Conversion) -> str:
    """Describe the invalid value that contains byte `at` of `raw`, a flat uint8 array."""
    width = DTYPE_BITS[conversion.target] // 8
    begin = at // width * width
    value = int.from_bytes(raw[begin : begin + width].tobytes(), "little")
    return f"{conversion.target} 0x{value:0{2 * width}x} is no value of {conversion.source}, which it was made from"


def _place(part: Bytes, rows: Bytes, start: int) -> None:
    """Copy `part`, uint8 `[rows, width]`, into the columns of `rows` from byte `start` on.

    Equal narrow columns are copied as one item per row, as in `sharding.copy`.
    """
    width = part.shape[1]
    if not width:  # a rank beyond the last whole unit holds only padding
        return
    if rows.shape[1] % width == 0 and start % width == 0 and part.flags.c_contiguous:
        rows.view(f"V{width}")[:, start // width] = part.view(f"V{width}")[:, 0]
    else:
        rows[:, start : start + width] = part
