"""Exact, reversible elementwise dtype casts that engines make when they load: E8M0→F32, BF16→F32, I64→I32.

Each cast maps raw bytes to raw bytes, so that it works on any piece of a tensor and needs no torch. Each can be undone,
so that bytes that are not the result of a cast are detected: casting the undone bytes gives other bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsv4_shard.errors import IncompleteCheckpoint

Bytes = npt.NDArray[np.uint8]
"""Raw bytes of elements as a uint8 array of any shape, usually `[rows, bytes per row]`.

The last axis is contiguous and holds whole elements. A cast changes only the length of this axis.
"""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A dtype cast.

    Attributes:
        source: Dtype before the cast, as in a safetensors header.
        target: Dtype after the cast.
        growth: Output bytes over input bytes, as (numerator, denominator).
        apply: Casts raw bytes of `source` to raw bytes of `target`.
        undo: Inverse of `apply`. Its result is meaningless for bytes that `apply` never returns.
    """

    source: str
    target: str
    growth: tuple[int, int]
    apply: Callable[[Bytes], Bytes]
    undo: Callable[[Bytes], Bytes]

    def nbytes(self, source_nbytes: int) -> int:
        """Return the output bytes for `source_nbytes` input bytes."""
        return source_nbytes * self.growth[0] // self.growth[1]


def _e8m0_to_f32(data: Bytes) -> Bytes:
    """Return 2^(code - 127) in float32. The code is the exponent field, except for 2^-127 (subnormal) and NaN."""
    bits = data.astype(np.uint32) << 23
    bits[data == 0] = 0x00400000
    bits[data == 255] = 0x7F800001  # the NaN that torch writes
    return bits.view(np.uint8)


def _f32_to_e8m0(data: Bytes) -> Bytes:
    """Return the exponent field, which is the code for all values: 0 for 2^-127, 255 for NaN."""
    return (data.view(np.uint32) >> 23).astype(np.uint8)


def _bf16_to_f32(data: Bytes) -> Bytes:
    """Return float32 bytes: BF16 is their upper half."""
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.uint8)


def _f32_to_bf16(data: Bytes) -> Bytes:
    """Return the upper half of each float32."""
    return (data.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def _i64_to_i32(data: Bytes) -> Bytes:
    """Return int32 bytes. Raises IncompleteCheckpoint if a value needs more than 32 bits."""
    values = data.view(np.int64)
    if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
        raise IncompleteCheckpoint("a table of expert numbers holds values beyond 32 bits")
    return values.astype(np.int32).view(np.uint8)


def _i32_to_i64(data: Bytes) -> Bytes:
    """Return int64 bytes."""
    return data.view(np.int32).astype(np.int64).view(np.uint8)


CONVERSIONS = {
    ("F8_E8M0", "F32"): Conversion("F8_E8M0", "F32", (4, 1), _e8m0_to_f32, _f32_to_e8m0),
    ("BF16", "F32"): Conversion("BF16", "F32", (2, 1), _bf16_to_f32, _f32_to_bf16),
    ("I64", "I32"): Conversion("I64", "I32", (1, 2), _i64_to_i32, _i32_to_i64),
}
"""(source dtype, target dtype) → cast."""
