"""Quantization blocks, splits and rectangles: shapes in elements, ranges in bytes. No files, no models.

A *block* is the rectangle of weight elements that share one scale. A weight `[rows, cols]` in blocks of (r, c) has a
scale `[ceil(rows / r), ceil(cols / c)]`, so the block decides where a rank may cut the weight. DeepSeek-V4-Pro's shared
expert has 3072 rows in 24 blocks of 128, and 24 blocks do not divide by 16 ranks.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from dsv4_shard.tensors.header import DTYPE_BITS, nbytes_of

PACKED_FP4 = frozenset({"I8", "U8"})
"""Dtypes under which checkpoints store FP4: two values per byte along the last axis, the even column low."""

FP4_GROUP = 32
"""Elements along K that share one scale in MXFP4."""

NVFP4_GROUP = 16
"""Elements along K that share one scale in NVFP4."""

DECODED_BLOCK = 128
"""Rows and columns of the blocks that DeepSeek's converter reads and writes."""

_LIKELY_UNITS = (128, 32, 64, 256, 16)

_MAX_PAIRS = 1000
"""Most (weight size, scale size) pairs that vote on a block: real checkpoints have about 20, hostile ones a million."""


class Block(NamedTuple):
    """The `rows` × `cols` elements that share one scale."""

    rows: int
    cols: int

    def __str__(self) -> str:
        return f"{self.rows}×{self.cols}"


class Rectangle(NamedTuple):
    """Part of a matrix stored row by row: of each row in `[row_start, row_stop)`, the bytes `[start, stop)`."""

    row_start: int
    row_stop: int
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.row_stop - self.row_start) * (self.stop - self.start)


def ceil_div(size: int, unit: int) -> int:
    """Return how many units of `unit` cover `size`."""
    return -(-size // unit)


def logical_shape(dtype: str, shape: tuple[int, ...], packed: bool) -> tuple[int, ...]:
    """Return the shape in values for a stored shape. If `packed`, each stored byte holds two along the last axis."""
    if packed and dtype in PACKED_FP4 and shape:
        return (*shape[:-1], shape[-1] * 2)
    return shape


def scale_shape(shape: tuple[int, ...], block: Block) -> tuple[int, int]:
    """Return the shape of a weight's scale, `ceil(weight / block)` on each axis. `shape` is in elements."""
    rows, cols = shape
    return ceil_div(rows, block.rows), ceil_div(cols, block.cols)


def agree_on_unit(pairs: Mapping[tuple[int, int], int], declared: int | None) -> int:
    """Return the block size along one axis that fits the most tensors.

    One pair seldom decides: 5 scales over 576 elements fit any unit from 116 to 143. All pairs of a checkpoint do. Ties
    go to the declared unit, then to the more common units.

    Args:
        pairs: (weight size, scale size) along this axis in elements → number of tensors.
        declared: The block size that config.json declares, if any.
    """
    pairs = dict(Counter(pairs).most_common(_MAX_PAIRS))
    exact = {size // scales for size, scales in pairs if scales and size % scales == 0}
    candidates = [unit for unit in (declared, *_LIKELY_UNITS, *sorted(exact)) if unit]
    return max(candidates, key=lambda unit: sum(n for (w, s), n in pairs.items() if ceil_div(w, unit) == s))


def split(size: int, parts: int, index: int) -> tuple[int, int]:
    """Return the half-open range of part `index` when `size` is cut into `parts` equal parts.

    Raises ValueError if `size` does not divide: the engine's rules must refuse such a layout earlier.
    """
    if size % parts:
        raise ValueError(f"{size} is not divisible by {parts}")
    step = size // parts
    return index * step, (index + 1) * step


def slice_rectangle(dtype: str, shape: tuple[int, ...], axis: int, start: int, stop: int) -> Rectangle:
    """Return the bytes of a slice of a tensor, as a rectangle of its matrix.

    The rows of the matrix are the tensor's first axis; each row holds all other axes. So axis 0 gives whole rows, and
    axis 1 of a 2-D tensor gives columns.

    Args:
        dtype: Stored dtype.
        shape: Stored shape in elements.
        axis: The axis that is cut: 0, or 1 of a 2-D tensor.
        start: First index along `axis`, in elements.
        stop: End index along `axis`, exclusive.

    Raises:
        ValueError: Another axis is cut, or a cut falls inside a byte.
    """
    row_bits = _row_bits(dtype, shape)
    if axis == 0:
        if row_bits % 8:
            raise ValueError(f"rows of {dtype} {list(shape)} do not end on a byte")
        return Rectangle(start, stop, 0, row_bits // 8)
    if axis != 1 or len(shape) != 2:
        raise ValueError(f"axis {axis} of {len(shape)} axes is not cut by any engine")
    bits = DTYPE_BITS[dtype]
    if row_bits % 8 or start * bits % 8 or stop * bits % 8:
        raise ValueError(f"columns {start}:{stop} of {dtype} do not fall on bytes")
    return Rectangle(0, shape[0], start * bits // 8, stop * bits // 8)


def whole_rectangle(dtype: str, shape: tuple[int, ...]) -> Rectangle:
    """Return all bytes of a tensor as a rectangle.

    A scalar is one row, and so is a tensor whose rows do not end on a byte.
    """
    row_bits = _row_bits(dtype, shape)
    if not shape or row_bits % 8:
        return Rectangle(0, 1, 0, nbytes_of(dtype, shape))
    return Rectangle(0, shape[0], 0, row_bits // 8)


def _row_bits(dtype: str, shape: tuple[int, ...]) -> int:
    bits = DTYPE_BITS[dtype]
    for size in shape[1:]:
        bits *= size
    return bits
