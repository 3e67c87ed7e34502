"""Quantized matrix → float32, in torch."""

from typing import TYPE_CHECKING

from dsv4_shard.tensors.decoding import FP4_MAGNITUDES
from dsv4_shard.tensors.dtype_casts import Bytes

if TYPE_CHECKING:
    import torch


def dequantize(data: bytes, dtype: str, rows: int, scale: Bytes, scale_dtype: str) -> "torch.Tensor":
    """The values of a quantized matrix, float32 `[rows, columns]`.

    The block size follows from the two shapes, rounded up.

    Args:
        data: The stored bytes of the matrix, row by row.
        dtype: "F8_E4M3"; any other dtype means packed FP4, two values per byte, low nibble first.
        rows: Number of rows.
        scale: uint8 `[scale rows, scale columns, item size]`, the bytes of the scales.
        scale_dtype: "F8_E8M0", "F8_E4M3" or "F32".
    """
    import torch

    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(rows, -1)
    if dtype == "F8_E4M3":
        values = raw.view(torch.float8_e4m3fn).float()
    else:
        table = torch.tensor([*FP4_MAGNITUDES, *(-m for m in FP4_MAGNITUDES)])
        values = torch.stack([table[(raw & 0x0F).long()], table[(raw >> 4).long()]], dim=-1).flatten(1)
    stored = {"F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3": torch.float8_e4m3fn, "F32": torch.float32}[scale_dtype]
    factors = torch.from_numpy(scale).view(stored).squeeze(-1).float()
    height, width = -(-values.shape[0] // factors.shape[0]), -(-values.shape[1] // factors.shape[1])
    factors = factors.repeat_interleave(height, 0)[: values.shape[0]]
    return values * factors.repeat_interleave(width, 1)[:, : values.shape[1]]


def plain(data: bytes, dtype: str, rows: int) -> "torch.Tensor":
    """The values of a matrix that is not quantized (BF16 or F32), float32 `[rows, columns]`."""
    import torch

    stored = {"BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    return torch.frombuffer(bytearray(data), dtype=stored).view(rows, -1).float()
