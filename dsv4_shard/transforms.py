"""The few pieces that are decoded on the way: FP8 → BF16, and FP4 → FP8 as DeepSeek's converter casts it.

Both work on whole stripes of rows, so that a matrix is never held whole. The only module that needs torch, and that
imports it where it is used: everything that only moves bytes starts without it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dsv4_shard.blocks import DECODED_BLOCK as BLOCK
from dsv4_shard.blocks import FP4_GROUP

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]

_FP4_GROUP_BYTES = FP4_GROUP // 2
"""Packed bytes of one FP4 group: two values a byte."""

_FP4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

_MAX_OFFSET_BITS = 6
"""6.0 · 2^6 = 384 fits E4M3 (448), 6.0 · 2^7 does not: the factor by which the cast scales values up."""

_E8M0_NAN = 255
_E4M3_NAN = 0x7F


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded stripe: its bytes row by row, its new scales if it has any, and how many values lost precision."""

    weight: Bytes
    scale: Bytes | None
    inexact: int


@dataclass(frozen=True, slots=True)
class Transform:
    """A decoding of a weight `[rows, cols]` (as stored) and its scale, by stripes of `row_step` rows.

    `weight_dtype` and `cols_factor` give the output's dtype and columns; `scale_dtype` is None where the scale is
    used up. `scale_rows` is how many rows of the source's scale one stripe needs.
    """

    name: str
    row_step: int
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
        return shape[0] // BLOCK, shape[1] * FP4_GROUP // BLOCK


def _fp8_to_bf16(weight: Bytes, scale: Bytes, scale_dtype: str) -> Decoded:
    """E4M3 × scale, in float32 with one rounding to BF16: the arithmetic of convert.py's `wo_a`."""
    import torch

    stored = {"F8_E8M0": torch.float8_e8m0fnu, "F32": torch.float32}[scale_dtype]
    values = torch.from_numpy(weight).view(torch.float8_e4m3fn)
    scales = torch.from_numpy(scale).view(stored).float()
    out = torch.empty(values.shape, dtype=torch.bfloat16)
    for block_row in range(scales.shape[0]):
        rows = slice(block_row * BLOCK, (block_row + 1) * BLOCK)
        factors = scales[block_row].repeat_interleave(BLOCK)[: values.shape[1]]
        out[rows] = (values[rows].float() * factors).bfloat16()
    return Decoded(out.view(torch.uint8).numpy(), None, 0)


@cache
def _cast_tables() -> tuple[npt.NDArray[np.uint16], Bytes, Bytes]:
    """Tables of the FP4 → FP8 cast, from torch's own conversions.

    `pairs[d << 8 | byte]` is the two E4M3 bytes of a packed byte whose group's scale is 2^d below its block's largest;
    `losses` counts which of the two are inexact; `scales[m]` is the block's new scale for its largest scale `m`.
    """
    import torch

    magnitudes = torch.tensor(_FP4_MAGNITUDES)
    # The converter's table has +0.0 for code 8, so a negative zero comes out positive.
    values = torch.cat([magnitudes, torch.tensor([0.0]), -magnitudes[1:]])
    distances = torch.arange(256, dtype=torch.float64)
    offsets = torch.exp2(_MAX_OFFSET_BITS - distances).float()
    cast = (values * offsets[:, None]).to(torch.float8_e4m3fn)
    exact = values.double() * torch.exp2(_MAX_OFFSET_BITS - distances)[:, None]
    lost = (cast.double() != exact).numpy().astype(np.uint8)
    codes = cast.view(torch.uint8).numpy().astype(np.uint16)
    low, high = np.arange(256) & 0x0F, np.arange(256) >> 4
    pairs = (codes[:, low] | (codes[:, high] << np.uint16(8))).reshape(-1)
    losses: Bytes = (lost[:, low] + lost[:, high]).reshape(-1)
    largest = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).float()
    scales: Bytes = (largest / 2**_MAX_OFFSET_BITS).to(torch.float8_e8m0fnu).view(torch.uint8).numpy()
    return pairs, losses, scales


def _fp4_to_fp8(weight: Bytes, scale: Bytes, scale_dtype: str) -> Decoded:
    """`cast_e2m1fn_to_e4m3fn` of convert.py: one scale for each 128 × 128 block, the differences moved into the values.

    `weight` is `[rows, cols / 2]` packed FP4, `scale` `[rows, cols / 32]` E8M0. Exact while the scales of a block
    differ by at most 2^14 and the largest is at least 2^-121; `inexact` counts the values for which that fails.
    """
    pairs, losses, new_scales = _cast_tables()
    rows, groups = scale.shape
    per_block = BLOCK // FP4_GROUP
    blocks = scale.reshape(rows // BLOCK, BLOCK, groups // per_block, per_block)
    largest = blocks.max(axis=(1, 3))
    distance = (largest[:, None, :, None] - blocks).reshape(rows, groups)
    index = np.repeat(distance, _FP4_GROUP_BYTES, axis=1).astype(np.uint16) << 8
    index |= weight
    out = pairs[index]
    scale_out = new_scales[largest]
    odd = (largest < _MAX_OFFSET_BITS) | (largest == _E8M0_NAN)
    inexact = 0
    # 0.5 · 2^(6 - 14) = 2^-9 is E4M3's smallest value: nothing is lost up to there.
    if int(distance.max()) > 2 * _MAX_OFFSET_BITS + 2:
        lost = losses[index].reshape(rows // BLOCK, BLOCK, -1, BLOCK // 2).sum(axis=(1, 3), dtype=np.int64)
        inexact = int(lost[~odd].sum())
    if odd.any():
        inexact += _spoil(out, weight, largest, odd)
    return Decoded(out.view(np.uint8), scale_out, inexact)


def _spoil(out: npt.NDArray[np.uint16], weight: Bytes, largest: Bytes, odd: npt.NDArray[np.bool_]) -> int:
    """Blocks whose new scale E8M0 cannot hold: too small, or not a number. Returns how many values are off."""
    count = 0
    width = BLOCK // 2
    for row, col in np.argwhere(odd):
        block = (slice(row * BLOCK, (row + 1) * BLOCK), slice(col * width, (col + 1) * width))
        if largest[row, col] == _E8M0_NAN:
            out[block] = _E4M3_NAN << 8 | _E4M3_NAN
            count += BLOCK * BLOCK
        else:
            count += int(np.count_nonzero(weight[block] & 0x07) + np.count_nonzero(weight[block] & 0x70))
    return count


def dequantize(data: bytes, dtype: str, rows: int, scale: Bytes, scale_dtype: str) -> "torch.Tensor":
    """The float32 values of a quantized matrix of `rows` rows: E4M3, or packed FP4 under any other dtype.

    `scale` is `[rows, cols, itemsize]` bytes of E8M0 or F32; its block is what the two shapes give, rounded up.
    """
    import torch

    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(rows, -1)
    if dtype == "F8_E4M3":
        values = raw.view(torch.float8_e4m3fn).float()
    else:
        table = torch.tensor([*_FP4_MAGNITUDES, *(-m for m in _FP4_MAGNITUDES)])
        values = torch.stack([table[(raw & 0x0F).long()], table[(raw >> 4).long()]], dim=-1).flatten(1)
    stored = {"F8_E8M0": torch.float8_e8m0fnu, "F32": torch.float32}[scale_dtype]
    factors = torch.from_numpy(scale).view(stored).squeeze(-1).float()
    height, width = -(-values.shape[0] // factors.shape[0]), -(-values.shape[1] // factors.shape[1])
    factors = factors.repeat_interleave(height, 0)[: values.shape[0]]
    return values * factors.repeat_interleave(width, 1)[:, : values.shape[1]]


TRANSFORMS = {
    transform.name: transform
    for transform in (
        Transform("fp8_to_bf16", BLOCK, "BF16", 1, None, 1, _fp8_to_bf16),
        Transform("fp4_to_fp8", BLOCK, "F8_E4M3", 2, "F8_E8M0", BLOCK, _fp4_to_fp8),
    )
}
"""By the name that a layout's `Kept` gives."""
