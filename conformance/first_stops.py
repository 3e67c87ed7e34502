"""A start of an engine in steps, for its environment: which step raises first. Only torch and the standard library."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from conformance.jobs import told

_DTYPES = {
    "BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8, "U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "F16": torch.float16,
}  # fmt: skip


def stop_of(package: str, steps: Iterator[str]) -> dict[str, Any]:
    """Run `steps`, which yields the name of each stage as it begins. Returns where it raised."""
    stage = ""
    try:
        for stage in steps:  # noqa: B007 - the last one is what counts
            pass
    except BaseException as error:  # an engine may raise SystemExit
        return {"stage": stage} | told(error, package)
    return {}


def weights_of(job: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The checkpoint's tensors by name: without memory, except single numbers, which loaders read."""
    tensors: dict[str, tuple[str, list[int]]] = json.loads(Path(job["weights"]).read_text())
    for name, (dtype, shape) in tensors.items():
        is_number = math.prod(shape) == 1
        yield name, torch.ones(shape, dtype=torch.float32, device="cpu" if is_number else "meta").to(_DTYPES[dtype])
