"""The order in which vLLM's MegaMoE keeps what a file holds: written from a description of the kernel's layout.

Gate and up are interleaved by 8 rows. Scales are repeated to one for 1 x 32 values, four of them in a word; their rows
are interleaved alike, then row 32 * j + i of each 128 becomes row 4 * i + j.
"""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROUTED = re.compile(r"(.*ffn\.experts\.)(w13|w2)_weight(_scale)?")
_SHARED = re.compile(r"(.*ffn\.)shared_experts\.(gate_up_proj|down_proj)\.weight(_scale_inv)?")
_BLOCK = 128
_GROUP = 32


class Turned(NamedTuple):
    """A parameter as the kernel wants it."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes


def in_kernel_order(name: str, shape: list[int], data: memoryview) -> Turned | None:
    """A tensor of a file as MegaMoE's parameter; None for tensors that are no experts."""
    if routed := _ROUTED.fullmatch(name):
        stored, scale = np.frombuffer(data, np.uint8).reshape(shape), routed[3]
        joined = routed[2] == "w13"
        rows = _scales(stored, joined=joined) if scale else _weights(stored, joined=joined)
        return _turned(name, "I32" if scale else "I8", rows)
    if shared := _SHARED.fullmatch(name):
        stored, (prefix, linear, scale) = np.frombuffer(data, np.uint8).reshape(shape), shared.groups()
        joined = linear == "gate_up_proj"
        if scale:
            fine = stored.repeat(_BLOCK, axis=0).repeat(_BLOCK // _GROUP, axis=1)
            rows = _scales(fine[None], joined=joined)[0]
        else:
            rows = _weights(stored[None], joined=joined)[0]
        parameter = f"{prefix}experts.shared_l{1 if joined else 2}_weight{'_scale' if scale else ''}"
        return _turned(parameter, "I32" if scale else "F8_E4M3", rows)
    return None


def _weights(rows: NDArray[np.uint8], *, joined: bool) -> NDArray[np.uint8]:
    if not joined:
        return rows
    experts, count, cols = rows.shape
    return rows.reshape(experts, 2, count // 16, 8, cols).transpose(0, 2, 1, 3, 4).reshape(rows.shape)


def _scales(rows: NDArray[np.uint8], *, joined: bool) -> NDArray[np.uint8]:
    rows = _weights(rows, joined=joined)
    experts, count, cols = rows.shape
    return rows.reshape(experts, count // 128, 4, 32, cols).transpose(0, 1, 3, 2, 4).reshape(rows.shape)


def _turned(name: str, dtype: str, rows: NDArray[np.uint8]) -> Turned:
    *outer, cols = rows.shape
    return Turned(name, dtype, [*outer, cols // 4 if dtype == "I32" else cols], np.ascontiguousarray(rows).tobytes())
