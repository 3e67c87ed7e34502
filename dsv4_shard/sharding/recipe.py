"""A recipe: output files, steps, cuts; and the source spans that the steps read, in order.

A step reads each row that its cuts need once. A weight that is decoded is read stripe by stripe, with its scales. If
they become new scales, these are steps of their own, which read them a second time: safetensors puts them in front of
the weights, where a file's SHA-256 needs them first.
Remote sources fetch ahead in the order of the steps. A folder is read in the order that fills the output files.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from dsv4_shard.errors import CheckpointTooLarge
from dsv4_shard.limits import HEADER, RESULT, ROWS
from dsv4_shard.sources.base import CHUNK_BYTES, Span
from dsv4_shard.tensors.decoding import Transform
from dsv4_shard.tensors.dtype_casts import Conversion
from dsv4_shard.tensors.geometry import PACKED_FP4, Rectangle, whole_rectangle
from dsv4_shard.tensors.header import LENGTH_BYTES, Tensor, TensorInfo
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.text.strict_json import BadJson, check_size

PART_ELEMENTS = 32 << 20
"""Elements that a step moves, if its rows can be taken apart: so many are lost if it is broken off."""

_PART_UNIT = 128
"""Parts have whole stripes of blocks, in rows."""


def part_rows(rows: int, dtype: str, shape: tuple[int, ...]) -> list[int]:
    """The rows of each part in which `rows` of a tensor are moved, padding included; the first ones have more.

    A tensor has the same parts before it is decoded as after it, and a cut the same ones whichever ranks are written.
    """
    height = whole_rectangle(dtype, shape).row_stop
    elements = math.prod(shape) * (2 if dtype in PACKED_FP4 else 1)
    count = max(1, -(-elements * rows // max(1, height * PART_ELEMENTS)))
    each, more = divmod(-(-rows // _PART_UNIT), count)
    ends = accumulate(each + (number < more) for number in range(count))
    edges = [0, *(min(end * _PART_UNIT, rows) for end in ends)]
    return [stop - start for start, stop in pairwise(edges) if start < stop] or [rows]


class Stripe(NamedTuple):
    """Rows `[row, row + rows)` of a weight, and the rows `[scale_row, scale_row + scale_rows)` of its scale."""

    row: int
    rows: int
    scale_row: int
    scale_rows: int


ALL_RANKS = -1
"""Stands for the rank of a file that all ranks share, or those of the first pipeline stage; stage n has -1 - n."""


def readers_name(stage: int | None) -> str:
    """Who reads a file that ranks share, in its header: all, or all of a pipeline stage."""
    return "all" if stage is None else f"all of stage {stage}"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """An output file, with its header and the place of each tensor.

    Attributes:
        name: Its name in the output folder.
        ranks: The ranks that read it.
        header: The bytes of its header.
        tensors: Tensor name -> dtype, shape and byte range, counted from the end of the header.
        pieces: Tensor of several pieces -> runs of (number of pieces, bytes of each), in order.
        links: Other names of the file.
        source: The checkpoint's file with the same bytes, if there is one; else empty.
        paired: Tensors whose pieces 2n and 2n + 1 must be equal, for each n.
    """

    name: str
    ranks: tuple[int, ...]
    header: bytes
    tensors: dict[str, TensorInfo]
    pieces: dict[str, tuple[tuple[int, int], ...]]
    links: tuple[str, ...] = ()
    source: str = ""
    paired: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes, header included."""
        return len(self.header) + self.payload

    def piece_nbytes(self, tensor: str, slot: int) -> int:
        """Bytes of piece number `slot` of a tensor."""
        for count, nbytes in self.pieces.get(tensor, ()):
            if slot < count:
                return nbytes
            slot -= count
        return self.tensors[tensor].nbytes

    @property
    def payload(self) -> int:
        """Bytes of tensors."""
        return max((info.stop for info in self.tensors.values()), default=0)


class Slice(NamedTuple):
    """A rectangle of the source, with `pad_cols` bytes of padding on the right of each row and `pad_rows` rows below.

    It counts bytes and rows of the source after `Step.repeat` and before any cast.
    """

    rectangle: Rectangle
    pad_cols: int = 0
    pad_rows: int = 0

    @property
    def rows(self) -> int:
        """Rows with padding."""
        return self.rectangle.row_stop - self.rectangle.row_start + self.pad_rows

    def part(self, start: int, stop: int) -> "Slice":
        """Rows `[start, stop)` of the cut, counted with its padding."""
        area = self.rectangle
        first, last = (min(area.row_start + row, area.row_stop) for row in (start, stop))
        narrow = area._replace(row_start=first, row_stop=last)
        return Slice(narrow, self.pad_cols, stop - start - (last - first))

    @property
    def row_nbytes(self) -> int:
        """Bytes per row with padding, in the source's dtype."""
        return self.rectangle.stop - self.rectangle.start + self.pad_cols


SliceMap = tuple[tuple[Slice, tuple[int, ...]], ...]
"""Each cut with the numbers of the files that receive it. All cuts of a map have the same size."""


class Destination(NamedTuple):
    """The place where the cuts of a step go.

    Attributes:
        tensor: The output tensor, in each file of `spread`.
        at: Offset in that tensor, in bytes.
        slot: Number of the piece in that tensor.
        spread: The cuts and the files that receive them.
    """

    tensor: str
    at: int
    slot: int
    spread: SliceMap


@dataclass(frozen=True, slots=True)
class Step:
    """One source tensor and all of its destinations.

    Attributes:
        source: The tensor that is read.
        landings: Its destinations.
        conversion: Cast of each element to another dtype.
        repeat: Number of times that each element of a scale is repeated along both axes.
        fill: The padding element, in the source's dtype.
        transform: Decodes a weight together with `scale`. Without `scale`, the source is the scale of such a weight,
            and the step makes the new one.
        scale: The scale that `transform` needs to decode a weight.
        part: Number of this part of the rows, if several steps with the same source share them.
    """

    source: Tensor
    landings: tuple[Destination, ...]
    conversion: Conversion | None = None
    repeat: int = 1
    fill: bytes = b"\0"
    transform: Transform | None = None
    scale: Tensor | None = None
    part: int = 0

    @property
    def makes_scale(self) -> bool:
        """Whether it makes the new scale of a weight that another step decodes."""
        return self.transform is not None and self.scale is None


class Piece(NamedTuple):
    """The bytes of one cut in an output tensor. Each piece has a digest.

    Attributes:
        cut: The rectangle of the source; None for a tensor that comes from no checkpoint.
        tensor: The output tensor, in each of `files`.
        at: Offset in that tensor, in bytes.
        slot: Number of the piece in that tensor.
        files: The numbers of the files that receive it.
    """

    cut: Slice | None
    tensor: str
    at: int
    slot: int
    files: tuple[int, ...]


def pieces_of(step: Step) -> list[Piece]:
    """The pieces that a step makes. A cut that goes to several files is one piece, so it is cast and hashed once."""
    return [
        Piece(cut, landing.tensor, landing.at, landing.slot, files)
        for landing in step.landings
        for cut, files in landing.spread
    ]


def row_runs(step: Step) -> list[tuple[int, int]]:
    """The rows `[first, last)` that a step needs of its source (after `repeat`), in order and without overlap."""
    wanted = {(area.row_start, area.row_stop) for area in _areas(step) if area.row_start < area.row_stop}
    runs: list[tuple[int, int]] = []
    for first, last in sorted(wanted):
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
        else:
            runs.append((first, last))
    return runs


def stripes(step: Step, area: Rectangle) -> Iterator[Stripe]:
    """The rows of a decoded piece, in groups of whole stripes of blocks, about half of CHUNK_BYTES each.

    Decoded bytes, and those on the way to them, are several times as many.
    """
    assert step.transform is not None, "only what is decoded has stripes"
    block, scale_rows = step.transform.block, step.transform.scale_rows
    row_nbytes = whole_rectangle(step.source.dtype, step.source.shape).stop
    rows_at_once = max(1, CHUNK_BYTES // 2 // (row_nbytes * block)) * block
    for row in range(area.row_start, area.row_stop, rows_at_once):
        rows = min(rows_at_once, area.row_stop - row)
        yield Stripe(row, rows, row // block * scale_rows, -(-rows // block) * scale_rows)


def spans(steps: Iterable[Step]) -> Iterator[list[Span]]:
    """The spans that `steps` read, in order: one list for the tensors of each source file."""
    for _, alike in groupby(steps, key=lambda step: step.source.file):
        yield [span for step in alike for span in _spans(step)]


def _spans(step: Step) -> Iterator[Span]:
    tensor, scale = step.source, step.scale
    row_nbytes = whole_rectangle(tensor.dtype, tensor.shape).stop
    if row_nbytes == 0:
        return
    if step.repeat > 1:
        yield Span(tensor.file, tensor.start, tensor.stop)
    elif scale is None:
        for first, last in row_runs(step):
            yield Span(tensor.file, tensor.start + first * row_nbytes, tensor.start + last * row_nbytes)
    else:
        scale_row_nbytes = whole_rectangle(scale.dtype, scale.shape).stop
        for area in _areas(step):
            for row, rows, scale_row, scale_rows in stripes(step, area):
                start, begin = tensor.start + row * row_nbytes, scale.start + scale_row * scale_row_nbytes
                yield Span(tensor.file, start, start + rows * row_nbytes)
                yield Span(scale.file, begin, begin + scale_rows * scale_row_nbytes, aside=True)


def _areas(step: Step) -> Iterator[Rectangle]:
    return (cut.rectangle for landing in step.landings for cut, _ in landing.spread)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A whole tensor of file number `file` whose bytes come from no checkpoint."""

    file: int
    tensor: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Recipe:
    """Output files, and the steps that fill them.

    Attributes:
        files: The output files. Steps refer to them by number.
        steps: In the order of the source's bytes.
        fixed: Tensors that come from no checkpoint.
        left_out: Source tensor -> why no rank gets it.

    Raises:
        CheckpointTooLarge: The files could not be read, or the rows of a tensor are too long to be held in memory.
    """

    files: tuple[OutputFile, ...]
    steps: tuple[Step, ...]
    fixed: tuple[Fixed, ...]
    left_out: dict[str, str]

    def __post_init__(self) -> None:
        _refuse_unreadable(self.files)
        _refuse_wide_rows(self.steps)

    @property
    def nbytes(self) -> int:
        """Bytes of all output files. A file with several names counts once."""
        return sum(file.nbytes for file in self.files)

    def offset(self, file: int, tensor: str) -> int:
        """Byte where a tensor begins in file number `file`."""
        output = self.files[file]
        return len(output.header) + output.tensors[tensor].start


def _refuse_unreadable(files: tuple[OutputFile, ...]) -> None:
    """Raise CheckpointTooLarge if no command could read the files once they are written."""
    for file in files:
        try:
            check_size(file.header[LENGTH_BYTES:], HEADER)
        except BadJson as error:
            raise CheckpointTooLarge(f"{file.name}, if it were written, would not be readable: its header has {error}",
                                     hint="Write more ranks, or look at the checkpoint: no release is so large.",
                                     ) from None  # fmt: skip
    if (count := sum(len(file.tensors) for file in files)) > RESULT.count:
        raise CheckpointTooLarge(f"{count:,} tensors in all files of the result; at most {RESULT.count:,} are read",
                                 hint="Write fewer ranks into a folder (--ranks).")  # fmt: skip


def _refuse_wide_rows(steps: tuple[Step, ...]) -> None:
    """Raise CheckpointTooLarge if rows of a tensor are too long to be held in memory."""
    kinds = {(one.source.dtype, one.source.shape, one.repeat, one.transform is None): one for one in steps}
    for step in kinds.values():
        if (nbytes := _least_nbytes(step)) > ROWS.nbytes:
            raise CheckpointTooLarge(
                f"{short_name(step.source.name)}: {nbytes:,} bytes of its rows are needed at once, and at most "
                f"{ROWS.nbytes:,} are held"
            )


def _least_nbytes(step: Step) -> int:
    """Bytes of the rows that a step cannot take apart: of one, of one row of blocks, or of one that is repeated."""
    row_nbytes = whole_rectangle(step.source.dtype, step.source.shape).stop
    return row_nbytes * (step.transform.block if step.transform else step.repeat**2)


def output_order(recipe: Recipe) -> list[int]:
    """The numbers of the steps in the order in which all output files are filled from beginning to end.

    A step comes as early as the first of its bytes stands in its file, as a fraction of the file.
    """
    nbytes = [file.nbytes or 1 for file in recipe.files]

    def place(number: int) -> float:
        places = ((landing, files[0]) for landing in recipe.steps[number].landings for _, files in landing.spread[:1])
        return min(
            ((recipe.offset(file, landing.tensor) + landing.at) / nbytes[file] for landing, file in places),
            default=0.0,
        )

    return sorted(range(len(recipe.steps)), key=place)
