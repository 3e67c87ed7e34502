"""What the checks need of a model's parameters: dtype and shape as in a safetensors header, and a key of memory."""

from collections.abc import Hashable, Mapping

import torch

from dsv4_shard.loading.checks import Shapes

_DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}


def shapes_of(parameters: Mapping[str, torch.Tensor]) -> Shapes:
    """Return dtype and shape of each parameter; a dtype that no file has under torch's name."""
    return {n: (_DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for n, t in parameters.items()}


def meta_tensor(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor without memory of a dtype that a file has. Raises KeyError for another."""
    return torch.empty(shape, dtype={name: dtype for dtype, name in _DTYPES.items()}[dtype], device="meta")


def memory_of(name: str, parameter: torch.Tensor) -> Hashable:
    """Return a key for a parameter's memory: its own name if it has none, as on the meta device."""
    return (str(parameter.device), parameter.data_ptr()) if parameter.data_ptr() else name
