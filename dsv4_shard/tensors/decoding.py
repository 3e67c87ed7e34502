"""The few pieces that are decoded on the way: FP8 → BF16, and FP4 → FP8 as DeepSeek's converter casts it.

Both work on whole stripes of rows, so that a matrix is never held whole. They are tables and integers in numpy, bit for
bit what torch computes in the converter: importing torch would take longer than casting a gigabyte. `dequantize`, whose
values are multiplied, is what needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from dsv4_shard.tensors.geometry import FP4_GROUP

Bytes = npt.NDArray[np.uint8]

_FP4_GROUP_BYTES = FP4_GROUP // 2
"""Packed bytes of one FP4 group: two values a byte."""

FP4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

_MAX_OFFSET_BITS = 6
"""6.0 · 2^6 = 384 fits E4M3 (448), 6.0 · 2^7 does not: the factor by which the cast scales values up."""

_E8M0_NAN = 255

_E4M3_NAN = 0x7F

_BF16_NAN = 0x7FC0

_E4M3_MANTISSA_BITS = 3

_MAX_NORMAL_DISTANCE = 11
"""0.5 · 2^(6 - 11) = 2^-6 is E4M3's smallest normal value."""

_CACHED_ROWS = 128
"""Rows that are cast at a time: no more than stay in the CPU's cache."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded stripe: its bytes row by row, its new scales if it has any, and how many values lost precision."""

    weight: Bytes
    scale: Bytes | None
    inexact: int


@dataclass(frozen=True, slots=True)
class Transform:
    """A decoding of a weight `[rows, cols]` (as stored) and its scale, by stripes of `block` rows.

    `block` is the side of the square blocks that are decoded or made. `weight_dtype` and `cols_factor` give the
    output's dtype and columns; `scale_dtype` is None where the scale is used up. `scale_rows` is how many rows of the
    source's scale one stripe needs.
    """

    name: str
    block: int
    weight_dtype: str
    cols_factor: int
    scale_dtype: str | None
    scale_rows: int
    apply: Callable[[Bytes, Bytes, str], Decoded]

    def weight_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the output for a stored shape."""
        return shape[0], shape[1] * self.cols_factor

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the output's scale for the shape of the source's: FP4 groups become square blocks."""
        return shape[0] // self.block, shape[1] * FP4_GROUP // self.block


def _fp8_to_bf16(block: int, weight: Bytes, scale: Bytes, scale_dtype: str) -> Decoded:
    """E4M3 × scale, in float32 with one rounding to BF16: the arithmetic of convert.py's `wo_a`."""
    values = _e4m3_values()
    scales = scale.view(np.float32) if scale_dtype == "F32" else _e8m0_values()[scale]
    out = np.empty(weight.shape, np.uint16)
    for block_row in range(len(scales)):
        rows = slice(block_row * block, (block_row + 1) * block)
        factors = scales[block_row].repeat(block)[: weight.shape[1]]
        with np.errstate(over="ignore", invalid="ignore"):
            out[rows] = _to_bf16(values.take(weight[rows]) * factors)
    return Decoded(out.view(np.uint8), None, 0)


@cache
def _e4m3_values() -> npt.NDArray[np.float32]:
    """The value of each E4M3 code: sign, four bits of exponent biased by 7, three of mantissa; all ones is NaN."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8.0 + mantissa, exponent - 10))
    values[codes & 0x7F == _E4M3_NAN] = np.nan
    signed: npt.NDArray[np.float32] = np.where(codes & 0x80, -values, values).astype(np.float32)
    return signed


@cache
def _e8m0_values() -> npt.NDArray[np.float32]:
    """The value of each E8M0 code: a power of two, its exponent biased by 127; all ones is NaN."""
    values = np.ldexp(1.0, np.arange(256) - 127)
    values[_E8M0_NAN] = np.nan
    return values.astype(np.float32)


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """BF16 bits of float32 values, rounded to the nearest, ties to even; NaNs become the one that torch writes."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    rounded[np.isnan(values)] = _BF16_NAN
    return rounded.astype(np.uint16)


def _to_e4m3(values: npt.NDArray[np.float64]) -> Bytes:
    """E4M3 codes of values below its largest, rounded to the nearest, ties to even."""
    finite = _e4m3_values()[:_E4M3_NAN].astype(np.float64)
    magnitudes = np.abs(values)
    above = np.searchsorted(finite, magnitudes).clip(1)
    below = above - 1
    middle = (finite[below] + finite[above]) / 2
    goes_up = (magnitudes > middle) | ((magnitudes == middle) & (above % 2 == 0))
    codes = np.where(goes_up, above, below)
    return (codes | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


@cache
def _cast_tables() -> tuple[npt.NDArray[np.uint16], Bytes]:
    """Tables of the FP4 → FP8 cast for any distance of a group's scale below its block's largest.

    `pairs[d << 8 | byte]` is the two E4M3 bytes of a packed byte whose scale is 2^d below; `losses` counts which of the
    two are inexact.
    """
    # The converter's table has +0.0 for code 8, so a negative zero comes out positive.
    magnitudes = np.array(FP4_MAGNITUDES)
    values = np.concatenate([magnitudes, [0.0], -magnitudes[1:]])
    exact = np.ldexp(values, (_MAX_OFFSET_BITS - np.arange(256))[:, None])
    codes = _to_e4m3(exact)
    lost = (_e4m3_values()[codes] != exact).astype(np.uint8)
    low, high = np.arange(256) & 0x0F, np.arange(256) >> 4
    wide = codes.astype(np.uint16)
    pairs = (wide[:, low] | (wide[:, high] << np.uint16(8))).reshape(-1)
    losses: Bytes = (lost[:, low] + lost[:, high]).reshape(-1)
    return pairs, losses


@cache
def _quads() -> npt.NDArray[np.uint32]:
    """The four E4M3 bytes of two packed bytes whose scale is their block's largest."""
    pairs = _cast_tables()[0][:256].astype(np.uint32)
    two = np.arange(1 << 16)
    quads: npt.NDArray[np.uint32] = pairs[two & 0xFF] | pairs[two >> 8] << 16
    return quads


def _fp4_to_fp8(block: int, weight: Bytes, scale: Bytes, scale_dtype: str) -> Decoded:
    """`cast_e2m1fn_to_e4m3fn` of convert.py: one scale for each square block, the differences moved into the values.

    `weight` is `[rows, cols / 2]` packed FP4, `scale` `[rows, cols / 32]` E8M0. Exact while the scales of a block
    differ by at most 2^14 and the largest is at least 2^-121; `inexact` counts the values for which that fails.
    """
    rows, groups = scale.shape
    per_block = block // FP4_GROUP
    blocks = scale.reshape(rows // block, block, groups // per_block, per_block)
    largest = blocks.max(axis=(1, 3))
    distance = (largest[:, None, :, None] - blocks).reshape(rows, groups)
    scale_out = np.where(largest == _E8M0_NAN, largest, np.maximum(largest, _MAX_OFFSET_BITS) - _MAX_OFFSET_BITS)
    odd = (largest < _MAX_OFFSET_BITS) | (largest == _E8M0_NAN)
    if int(distance.max(initial=0)) <= _MAX_NORMAL_DISTANCE and not odd.any():
        return Decoded(_cast_near(weight, distance), scale_out, 0)
    pairs, losses = _cast_tables()
    index = np.repeat(distance, _FP4_GROUP_BYTES, axis=1).astype(np.uint16) << 8
    index |= weight
    out = pairs[index]
    lost = losses[index].reshape(rows // block, block, -1, block // 2).sum(axis=(1, 3), dtype=np.int64)
    inexact = int(lost[~odd].sum()) + _spoil(block, out, weight, largest, odd)
    return Decoded(out.view(np.uint8), scale_out, inexact)


def _cast_near(weight: Bytes, distance: Bytes) -> Bytes:
    """The cast where all values stay normal: a scale that is 2^d below takes d from the exponent of each but zeros.

    Four values at a time.
    """
    rows, groups = distance.shape
    twos = weight.view(np.uint16).reshape(rows, groups, _FP4_GROUP_BYTES // 2)
    steps = (distance.astype(np.uint32) << _E4M3_MANTISSA_BITS)[:, :, None]
    out = np.empty(twos.shape, np.uint32)
    spare = np.empty((min(rows, _CACHED_ROWS), *twos.shape[1:]), np.uint32)
    for row in range(0, rows, _CACHED_ROWS):
        some = slice(row, min(row + _CACHED_ROWS, rows))
        part, less = out[some], spare[: some.stop - row]
        np.take(_quads(), twos[some], out=part, mode="clip")  # "raise" would buffer the output
        np.right_shift(part, 6, out=less)  # this bit of the exponent is set in all of them but zeros
        np.bitwise_and(less, 0x01010101, out=less)
        np.multiply(less, steps[some], out=less)
        np.subtract(part, less, out=part)
    return out.reshape(rows, -1).view(np.uint8)


def _spoil(block: int, out: npt.NDArray[np.uint16], weight: Bytes, largest: Bytes, odd: npt.NDArray[np.bool_]) -> int:
    """Blocks whose new scale E8M0 cannot hold: too small, or not a number. Returns how many values are off."""
    count = 0
    width = block // 2
    for row, col in np.argwhere(odd):
        area = (slice(row * block, (row + 1) * block), slice(col * width, (col + 1) * width))
        if largest[row, col] == _E8M0_NAN:
            out[area] = _E4M3_NAN << 8 | _E4M3_NAN
            count += block * block
        else:
            count += int(np.count_nonzero(weight[area] & 0x07) + np.count_nonzero(weight[area] & 0x70))
    return count


TRANSFORMS = {
    transform.name: transform
    for transform in (
        Transform("fp8_to_bf16", 128, "BF16", 1, None, 1, partial(_fp8_to_bf16, 128)),
        Transform("fp8_32_to_bf16", 32, "BF16", 1, None, 1, partial(_fp8_to_bf16, 32)),
        Transform("fp4_to_fp8", 128, "F8_E4M3", 2, "F8_E8M0", 128, partial(_fp4_to_fp8, 128)),
        Transform("fp4_to_fp8_32", 32, "F8_E4M3", 2, "F8_E8M0", 32, partial(_fp4_to_fp8, 32)),
    )
}
"""By the name that a layout's `Kept` gives; those without a number in their name are of blocks of 128."""
