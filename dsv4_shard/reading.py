"""Which bytes of the source the steps of a recipe read, and in which order: for the copying, and for who fetches ahead.

A step reads the rows that its cuts need, each once; a weight that is decoded is read stripe by stripe with its scales.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from dsv4_shard.recipe import Step
from dsv4_shard.sources.base import CHUNK_BYTES, Span
from dsv4_shard.tensors.geometry import Rectangle, whole_rectangle


class Stripe(NamedTuple):
    """Rows `[row, row + rows)` of a weight, and the rows of its scale that are decoded with them."""

    row: int
    rows: int
    scale_row: int
    scale_rows: int


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
