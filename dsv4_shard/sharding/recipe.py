"""Which bytes of the source the steps of a recipe read, and in which order: for the copying, and for who fetches ahead.

A step reads the rows that its cuts need, each once; a weight that is decoded is read stripe by stripe with its scales.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from dsv4_shard.sources.base import CHUNK_BYTES, Span
from dsv4_shard.tensors.decoding import Transform
from dsv4_shard.tensors.dtype_casts import Conversion
from dsv4_shard.tensors.geometry import Rectangle, whole_rectangle
from dsv4_shard.tensors.header import Tensor, TensorInfo


class Stripe(NamedTuple):
    """Rows `[row, row + rows)` of a weight, and the rows of its scale that are decoded with them."""

    row: int
    rows: int
    scale_row: int
    scale_rows: int


ALL_RANKS = -1
"""The rank of a file that all ranks share."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file: its header's bytes, and each tensor's place counted from the end of the header.

    `ranks` are those that read it, `links` the other names under which it must be found. `pieces` has, for each tensor
    that is put together from several, runs of (count, bytes) in order. `source` is the file of the checkpoint that it
    is, byte by byte, if it is one.
    """

    name: str
    ranks: tuple[int, ...]
    header: bytes
    tensors: dict[str, TensorInfo]
    pieces: dict[str, tuple[tuple[int, int], ...]]
    links: tuple[str, ...] = ()
    source: str = ""

    @property
    def nbytes(self) -> int:
        return len(self.header) + self.payload

    @property
    def payload(self) -> int:
        """Bytes of tensors."""
        return max((info.stop for info in self.tensors.values()), default=0)


class Slice(NamedTuple):
    """A rectangle of the source, and its padding: `pad_cols` bytes on the right of each row, `pad_rows` rows below.

    It counts in bytes and rows of the source as repeated (see `Step.repeat`), before any conversion.
    """

    rectangle: Rectangle
    pad_cols: int = 0
    pad_rows: int = 0

    @property
    def rows(self) -> int:
        return self.rectangle.row_stop - self.rectangle.row_start + self.pad_rows

    @property
    def row_nbytes(self) -> int:
        return self.rectangle.stop - self.rectangle.start + self.pad_cols


SliceMap = tuple[tuple[Slice, tuple[int, ...]], ...]
"""Which cut goes to which files (by number). All cuts of a spread have the same size."""


class Destination(NamedTuple):
    """Where the cuts of a step land: `at` bytes into the output tensor `tensor` of each file, as its piece `slot`."""

    tensor: str
    at: int
    slot: int
    spread: SliceMap


@dataclass(frozen=True, slots=True)
class Step:
    """One source tensor and everywhere it goes.

    With a `transform`, `scale` is decoded together with it, and its new scales become the tensor `*.scale` beside each
    landing's. `conversion` changes the dtype of every element, `repeat` repeats each element of a scale along both
    axes, `fill` is the element of the source's dtype that pads.
    """

    source: Tensor
    landings: tuple[Destination, ...]
    conversion: Conversion | None = None
    repeat: int = 1
    fill: bytes = b"\0"
    transform: Transform | None = None
    scale: Tensor | None = None


def row_runs(step: Step) -> list[tuple[int, int]]:
    """The rows `[first, last)` that a step needs of its source (as repeated), in order, none of them twice."""
    wanted = {(area.row_start, area.row_stop) for area in _areas(step) if area.row_start < area.row_stop}
    runs: list[tuple[int, int]] = []
    for first, last in sorted(wanted):
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
        else:
            runs.append((first, last))
    return runs


def stripes(step: Step, area: Rectangle) -> Iterator[Stripe]:
    """The rows of a piece of a step that decodes, some whole stripes of blocks at a time: about CHUNK_BYTES each."""
    assert step.transform is not None, "only what is decoded has stripes"
    block, scale_rows = step.transform.block, step.transform.scale_rows
    row_nbytes = whole_rectangle(step.source.dtype, step.source.shape).stop
    rows_at_once = max(1, CHUNK_BYTES // (row_nbytes * block)) * block
    for row in range(area.row_start, area.row_stop, rows_at_once):
        rows = min(rows_at_once, area.row_stop - row)
        yield Stripe(row, rows, row // block * scale_rows, -(-rows // block) * scale_rows)


def spans(steps: Iterable[Step]) -> Iterator[list[Span]]:
    """What `steps` read, as they read it: a list for the tensors of each source file."""
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
    """Output files, steps in the order of the source's bytes, and the source tensors that no rank gets, with why."""

    files: tuple[OutputFile, ...]
    steps: tuple[Step, ...]
    fixed: tuple[Fixed, ...]
    left_out: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all output files, each counted once however many names it has."""
        return sum(file.nbytes for file in self.files)

    def offset(self, file: int, tensor: str) -> int:
        """Where a tensor begins in file number `file`."""
        output = self.files[file]
        return len(output.header) + output.tensors[tensor].start
