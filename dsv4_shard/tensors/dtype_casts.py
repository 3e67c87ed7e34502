"""Elementwise changes of dtype that engines make when they load: exact, and without torch.

Each takes and gives bytes, row by row, so that it can be applied to any piece of a tensor. Each can be undone: what
applying it again does not give back has not come from it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsv4_shard.errors import IncompleteCheckpoint

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Conversion:
    """A change of dtype; `growth` is output bytes over input bytes, as a fraction.

    `undo` gives back what `apply` was given, and nothing of use for bytes that `apply` never gives.
    """

    source: str
    target: str
    growth: tuple[int, int]
    apply: Callable[[Bytes], Bytes]
    undo: Callable[[Bytes], Bytes]

    def nbytes(self, source_nbytes: int) -> int:
        """Bytes that `source_nbytes` become."""
        return source_nbytes * self.growth[0] // self.growth[1]


def _e8m0_to_f32(data: Bytes) -> Bytes:
    """2^(e - 127): the exponent field itself, but for 2^-127 (subnormal) and NaN."""
    bits = data.astype(np.uint32) << 23
    bits[data == 0] = 0x00400000
    bits[data == 255] = 0x7F800001  # the NaN that torch makes of it
    return bits.view(np.uint8)


def _f32_to_e8m0(data: Bytes) -> Bytes:
    """The exponent field, which is also 0 of 2^-127 and 255 of NaN."""
    return (data.view(np.uint32) >> 23).astype(np.uint8)


def _bf16_to_f32(data: Bytes) -> Bytes:
    """A BF16 is the upper half of its float32."""
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.uint8)


def _f32_to_bf16(data: Bytes) -> Bytes:
    return (data.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def _i64_to_i32(data: Bytes) -> Bytes:
    """Refuses values that would not survive: a table of expert numbers has none."""
    values = data.view(np.int64)
    if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
        raise IncompleteCheckpoint("a table of expert numbers holds values beyond 32 bits")
    return values.astype(np.int32).view(np.uint8)


def _i32_to_i64(data: Bytes) -> Bytes:
    return data.view(np.int32).astype(np.int64).view(np.uint8)


CONVERSIONS = {
    ("F8_E8M0", "F32"): Conversion("F8_E8M0", "F32", (4, 1), _e8m0_to_f32, _f32_to_e8m0),
    ("BF16", "F32"): Conversion("BF16", "F32", (2, 1), _bf16_to_f32, _f32_to_bf16),
    ("I64", "I32"): Conversion("I64", "I32", (1, 2), _i64_to_i32, _i32_to_i64),
}
"""By source and target dtype."""
