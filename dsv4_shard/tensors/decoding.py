"""Decodes FP8 → BF16 and FP4 → FP8 by stripes of blocks, bit for bit as DeepSeek's converter `convert.py` does.

Each transform works on stripes of whole block rows, so that no matrix has to fit in memory. numpy tables and integer
arithmetic replace torch: importing torch takes longer than casting a gigabyte.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from dsv4_shard.tensors.dtype_casts import Bytes
from dsv4_shard.tensors.geometry import FP4_GROUP

_FP4_GROUP_BYTES = FP4_GROUP // 2
"""Packed bytes of one FP4 group: two values per byte."""

FP4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of E2M1 codes 0 to 7. Codes 8 to 15 are their negatives."""

_MAX_OFFSET_BITS = 6
"""Exponent of the factor by which the cast scales values up: 6.0 · 2^6 = 384 fits E4M3 (448), 6.0 · 2^7 does not."""

_E8M0_NAN = 255

_E4M3_NAN = 0x7F

_BF16_NAN = 0x7FC0

_E4M3_MANTISSA_BITS = 3

_MAX_NORMAL_DISTANCE = 11
"""Largest distance at which all values stay normal: 0.5 · 2^(6 - 11) = 2^-6 is E4M3's smallest normal value."""

_CACHED_ROWS = 128
"""Rows that are cast at a time, so that they stay in the CPU's cache."""

_CACHED_VALUES = 1 << 19
"""Values that are decoded at a time: as float32, and on their way to BF16, they take 24 bytes each."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded stripe.

    Attributes:
        weight: uint8 `[rows, bytes per row]`, in the transform's `weight_dtype`.
        inexact: Number of values that lost precision.
    """

    weight: Bytes
    inexact: int


@dataclass(frozen=True, slots=True)
class Transform:
    """A decoding of a stored weight `[rows, cols]` and its scale, by stripes of `block` rows.

    Attributes:
        name: Key in TRANSFORMS.
        block: Side, in elements, of the square blocks that are decoded or made. A stripe has this many rows.
        weight_dtype: Dtype of the output.
        cols_factor: Output columns per stored column.
        scale_dtype: Dtype of the output's scale; None if the output has no scale.
        scale_rows: Rows of the stored scale that one stripe needs.
        apply: Maps (weight, scale, dtype of the scale) of one or more stripes to Decoded. Both arrays are uint8
            `[rows, bytes per row]` as stored.
        rescale: Maps the stored scale of one or more stripes, uint8 `[rows, bytes per row]`, to the output's scale,
            uint8 `[block rows, bytes per row]`; None if the output has no scale. It needs no weight.
    """

    name: str
    block: int
    weight_dtype: str
    cols_factor: int
    scale_dtype: str | None
    scale_rows: int
    apply: Callable[[Bytes, Bytes, str], Decoded]
    rescale: Callable[[Bytes], Bytes] | None = None

    def weight_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the output's shape in elements for a weight's stored shape."""
        return shape[0], shape[1] * self.cols_factor

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the shape of the output's scale for the shape of the FP4 scale: groups become square blocks."""
        return shape[0] // self.block, shape[1] * FP4_GROUP // self.block


def _fp8_to_bf16(block: int, weight: Bytes, scale: Bytes, scale_dtype: str) -> Decoded:
    """Multiply E4M3 values by their scales in float32 and round once to BF16, as convert.py does for `wo_a`.

    Args:
        block: Side of the square blocks, in elements.
        weight: uint8 `[rows, cols]`, E4M3 codes.
        scale: uint8 `[ceil(rows / block), bytes per row]`: E8M0 codes or little-endian F32.
        scale_dtype: `F8_E8M0` or `F32`.

    Returns:
        `weight` as uint8 `[rows, 2 · cols]` (BF16), `inexact` 0.
    """
    values = _e4m3_values()
    scales = scale.view(np.float32) if scale_dtype == "F32" else _e8m0_values()[scale]
    out = np.empty(weight.shape, np.uint16)
    rows_at_once = min(block, max(1, _CACHED_VALUES // max(1, weight.shape[1])))
    for block_row in range(len(scales)):
        factors = scales[block_row].repeat(block)[: weight.shape[1]]
        for row in range(block_row * block, min((block_row + 1) * block, len(weight)), rows_at_once):
            rows = slice(row, min(row + rows_at_once, (block_row + 1) * block))
            with np.errstate(over="ignore", invalid="ignore"):
                out[rows] = _to_bf16(values.take(weight[rows]) * factors)
    return Decoded(out.view(np.uint8), 0)


@cache
def _e4m3_values() -> npt.NDArray[np.float32]:
    """Return the value of each E4M3 code, float32 `[256]`.

    A code is a sign, four exponent bits (bias 7) and three mantissa bits. All ones below the sign is NaN.
    """
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8.0 + mantissa, exponent - 10))
    values[codes & 0x7F == _E4M3_NAN] = np.nan
    signed: npt.NDArray[np.float32] = np.where(codes & 0x80, -values, values).astype(np.float32)
    return signed


@cache
def _e8m0_values() -> npt.NDArray[np.float32]:
    """Return the value of each E8M0 code, float32 `[256]`: 2^(code - 127). Code 255 is NaN."""
    values = np.ldexp(1.0, np.arange(256) - 127)
    values[_E8M0_NAN] = np.nan
    return values.astype(np.float32)


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the BF16 bits of float32 values, in the same shape, rounded to nearest even. NaNs become torch's NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    rounded[np.isnan(values)] = _BF16_NAN
    return rounded.astype(np.uint16)


def _to_e4m3(values: npt.NDArray[np.float64]) -> Bytes:
    """Return the E4M3 codes of values within its range, in the same shape, rounded to nearest even."""
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
    """Return the tables `(pairs, losses)` of the FP4 → FP8 cast, each of 2^16 entries.

    The index is `d << 8 | byte`, for a packed byte of a group whose scale is 2^d below the largest scale of its block.
    `pairs` has the two E4M3 codes as one uint16, `losses` the number (0 to 2) of inexact ones.
    """
    # The converter's table has +0.0 for code 8, so a negative zero becomes positive.
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
    """Return the four E4M3 codes, as one uint32, for each two packed bytes whose scale is the largest of its block."""
    pairs = _cast_tables()[0][:256].astype(np.uint32)
    two = np.arange(1 << 16)
    quads: npt.NDArray[np.uint32] = pairs[two & 0xFF] | pairs[two >> 8] << 16
    return quads


def _fp4_to_fp8(block: int, weight: Bytes, scale: Bytes, scale_dtype: str) -> Decoded:
    """Cast FP4 with group scales to FP8 with one scale per square block, as convert.py's `cast_e2m1fn_to_e4m3fn` does.

    The block's scale is its largest group scale. The difference of each group scale moves into the values. The cast is
    exact if the scales of a block differ by at most 2^14 and the largest is at least 2^-121.

    Args:
        block: Side of the square blocks, in elements.
        weight: uint8 `[rows, cols / 2]`, packed FP4.
        scale: uint8 `[rows, cols / 32]`, E8M0 codes.
        scale_dtype: Always `F8_E8M0`; not used.

    Returns:
        `weight` as uint8 `[rows, cols]` (E4M3), and the number of values that the cast changes.
    """
    rows, groups = scale.shape
    blocks, largest = _largest(block, scale)
    distance = (largest[:, None, :, None] - blocks).reshape(rows, groups)
    odd = (largest < _MAX_OFFSET_BITS) | (largest == _E8M0_NAN)
    if int(distance.max(initial=0)) <= _MAX_NORMAL_DISTANCE and not odd.any():
        return Decoded(_cast_near(weight, distance), 0)
    pairs, losses = _cast_tables()
    index = np.repeat(distance, _FP4_GROUP_BYTES, axis=1).astype(np.uint16) << 8
    index |= weight
    out = pairs[index]
    lost = losses[index].reshape(rows // block, block, -1, block // 2).sum(axis=(1, 3), dtype=np.int64)
    inexact = int(lost[~odd].sum()) + _spoil(block, out, weight, largest, odd)
    return Decoded(out.view(np.uint8), inexact)


def _fp4_to_fp8_scale(block: int, scale: Bytes) -> Bytes:
    """Return the scales of the blocks that `_fp4_to_fp8` makes, as uint8 `[rows / block, cols / block]` (E8M0).

    Args:
        block: Side of the square blocks, in elements.
        scale: uint8 `[rows, cols / 32]`, E8M0 codes.
    """
    _, largest = _largest(block, scale)
    return np.where(largest == _E8M0_NAN, largest, np.maximum(largest, _MAX_OFFSET_BITS) - _MAX_OFFSET_BITS)


def _largest(block: int, scale: Bytes) -> tuple[Bytes, Bytes]:
    """Return `scale`, uint8 `[rows, groups]`, by blocks, and the largest group scale of each block.

    Shapes: uint8 `[rows / block, block, cols / block, groups per block]` and `[rows / block, cols / block]`.
    """
    rows, groups = scale.shape
    per_block = block // FP4_GROUP
    blocks = scale.reshape(rows // block, block, groups // per_block, per_block)
    return blocks, blocks.max(axis=(1, 3))


def _cast_near(weight: Bytes, distance: Bytes) -> Bytes:
    """Cast FP4 values that all stay normal in FP8, four at a time. Return uint8 `[rows, cols]`, E4M3 codes.

    A group scale that is 2^d below its block's largest subtracts d from the exponent of each value, except zeros.

    Args:
        weight: uint8 `[rows, cols / 2]`, packed FP4.
        distance: uint8 `[rows, cols / 32]`, d of each group, at most 11.
    """
    rows, groups = distance.shape
    twos = weight.view(np.uint16).reshape(rows, groups, _FP4_GROUP_BYTES // 2)
    steps = (distance.astype(np.uint32) << _E4M3_MANTISSA_BITS)[:, :, None]
    out = np.empty(twos.shape, np.uint32)
    spare = np.empty((min(rows, _CACHED_ROWS), *twos.shape[1:]), np.uint32)
    for row in range(0, rows, _CACHED_ROWS):
        chunk = slice(row, min(row + _CACHED_ROWS, rows))
        part, less = out[chunk], spare[: chunk.stop - row]
        np.take(_quads(), twos[chunk], out=part, mode="clip")  # "raise" would buffer the output
        np.right_shift(part, 6, out=less)  # this exponent bit is set in all codes except zeros
        np.bitwise_and(less, 0x01010101, out=less)
        np.multiply(less, steps[chunk], out=less)
        np.subtract(part, less, out=part)
    return out.reshape(rows, -1).view(np.uint8)


def _spoil(block: int, out: npt.NDArray[np.uint16], weight: Bytes, largest: Bytes, odd: npt.NDArray[np.bool_]) -> int:
    """Handle blocks whose new scale E8M0 cannot hold: too small, or NaN. Return the number of inexact values.

    Args:
        block: Side of the square blocks, in elements.
        out: uint16 `[rows, cols / 2]`, pairs of E4M3 codes. Blocks with a NaN scale are filled with NaN in place.
        weight: uint8 `[rows, cols / 2]`, packed FP4.
        largest: uint8 `[rows / block, cols / block]`, the largest E8M0 code of each block.
        odd: bool, in the shape of `largest`: the blocks to handle.
    """
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
        Transform(
            "fp4_to_fp8", 128, "F8_E4M3", 2, "F8_E8M0", 128, partial(_fp4_to_fp8, 128), partial(_fp4_to_fp8_scale, 128)
        ),
        Transform(
            "fp4_to_fp8_32", 32, "F8_E4M3", 2, "F8_E8M0", 32, partial(_fp4_to_fp8, 32), partial(_fp4_to_fp8_scale, 32)
        ),
    )
}
"""Name → transform. Names without a number are for blocks of 128."""
