"""A model's parameters as plain data, within an engine's environment: names, dtypes, shapes, digests of the bytes."""

import hashlib
from collections.abc import Iterable, Mapping

import torch

from conformance.digests import DIGEST_DIGITS, Params

DTYPES = {
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}
"""torch's dtypes under their names in safetensors files."""

POISONS = (0xA5, 0x5A)
"""Bytes put into parameters before loading. What a loader does not write shows as a difference between two of them."""


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def digest(tensor: torch.Tensor) -> str:
    """The first digits of the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(raw(tensor).numpy().tobytes()).hexdigest()[:DIGEST_DIGITS]


def describe(state: Mapping[str, torch.Tensor]) -> Params:
    """Each parameter's dtype, shape and digest."""
    return {name: (DTYPES[tensor.dtype], list(tensor.shape), digest(tensor)) for name, tensor in state.items()}


def copy_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` as it is now, whatever happens to the model."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def poison(parameters: Iterable[torch.nn.Parameter], byte: int) -> None:
    """Fill parameters with a byte that no loader would leave."""
    for parameter in parameters:
        data = parameter.data if parameter.is_contiguous() else parameter.data.transpose(-1, -2)
        if data.numel() and data.is_contiguous():
            data.reshape(-1).view(torch.uint8).fill_(byte)


def untouched(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold bytes of poison: those that differ between loads over different poisons."""
    return sorted(name for name in one if not torch.equal(raw(one[name]), raw(other[name])))
