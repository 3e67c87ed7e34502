"""config.json of any family → the sizes that it declares. Nothing else may be relied on."""

from collections.abc import Iterator
from typing import Any


def _natural(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 2**31 else None


def _places(document: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The objects that contain sizes. Models of text and images nest those of the text."""
    nested = document.get("text_config")
    return (document, nested) if isinstance(nested, dict) else (document,)


def size_of(document: dict[str, Any], *names: str) -> int | None:
    """The first natural number under one of `names`; None if there is none."""
    sizes = (_natural(place.get(name)) for name in names for place in _places(document))
    return next((size for size in sizes if size is not None), None)


def _quantizations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config's descriptions of quantized weights: one in FP8 checkpoints, one per group in compressed-tensors."""
    for place in _places(document):
        quantization = place.get("quantization_config")
        if isinstance(quantization, dict):
            yield quantization
            groups = quantization.get("config_groups")
            for group in groups.values() if isinstance(groups, dict) else ():
                weights = group.get("weights") if isinstance(group, dict) else None
                if isinstance(weights, dict):
                    yield weights


def declared_block(document: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None unless the config gives both."""
    for said in _quantizations(document):
        for block in (said.get("weight_block_size"), said.get("block_structure")):
            if isinstance(block, list) and len(block) == 2:
                rows, columns = _natural(block[0]), _natural(block[1])
                if rows and columns:
                    return rows, columns
    return None


def packed_bits(document: dict[str, Any]) -> int | None:
    """Bits per value in packed words; None unless the config gives exactly one number that divides the word."""
    bits = {_natural(said.get("num_bits")) for said in _quantizations(document)} & {2, 4, 8}
    return bits.pop() if len(bits) == 1 else None
