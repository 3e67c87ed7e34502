"""Reads what is known of a checkpoint on a server before its weights, in parallel: config, index and headers."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from dsv4_shard.checkpoint import CONFIG_FILE, INDEX_FILE, MAX_INDEX_BYTES, SINGLE_FILE, is_plain_name
from dsv4_shard.config import MAX_CONFIG_BYTES
from dsv4_shard.readahead import CONNECTIONS
from dsv4_shard.remote import RemoteSource
from dsv4_shard.tensors.header import LENGTH_BYTES, MAX_HEADER_BYTES
from dsv4_shard.text.strict_json import BadJson, parse_json

_LEAST_FIRST_BYTES = 64 << 10
_ENTRY_BYTES = 128
"""What a header has for a tensor, beside its name."""

_LIMITS = {CONFIG_FILE: MAX_CONFIG_BYTES, INDEX_FILE: MAX_INDEX_BYTES}


def read_small(source: RemoteSource) -> dict[str, bytes]:
    """config.json and the index, where they are there and not larger than they may be."""
    sizes = source.sizes()
    names = [name for name, limit in _LIMITS.items() if name in sizes and sizes[name] <= limit]
    return _in_parallel(lambda name: _bytes(source, name, 0, sizes[name]), names)


def wanted_headers(source: RemoteSource, small: Mapping[str, bytes]) -> dict[str, int]:
    """The weight files that an index names, as far as they are there, and about how long their headers are in bytes."""
    weight_map = weight_map_of(small[INDEX_FILE]) if INDEX_FILE in small else {"": SINGLE_FILE}
    expected = Counter[str]()
    for tensor, name in weight_map.items():
        expected[name] += len(tensor) + _ENTRY_BYTES
    return {name: expected[name] for name in sorted(expected) if name in source.listing and is_plain_name(name)}


def read_headers(source: RemoteSource, wanted: Mapping[str, int]) -> dict[str, bytes]:
    """Length and header of each file, byte by byte."""
    return _in_parallel(lambda name: _header(source, name, wanted[name]), list(wanted))


def weight_map_of(index: bytes) -> dict[str, str]:
    """Tensor → file; nothing where the index is not one, which is for the checks to tell."""
    try:
        document = parse_json(index)
    except BadJson:
        return {}
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    return {k: v for k, v in weight_map.items() if isinstance(v, str)} if isinstance(weight_map, dict) else {}


def _in_parallel(read: Callable[[str], bytes], names: list[str]) -> dict[str, bytes]:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def _header(source: RemoteSource, name: str, expected: int) -> bytes:
    """A file's length and header: in one range where it is as long as expected or shorter, else in two.

    Where the length is none that the format allows, what was read: the checks will tell.
    """
    nbytes = source.listing[name].nbytes
    first = _bytes(source, name, 0, min(nbytes, max(_LEAST_FIRST_BYTES, expected + expected // 8)))
    stop = LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little")
    if stop <= len(first) or stop > min(nbytes, LENGTH_BYTES + MAX_HEADER_BYTES):
        return first[:stop]
    return first + _bytes(source, name, len(first), stop)


def _bytes(source: RemoteSource, name: str, start: int, stop: int) -> bytes:
    with source.open(name) as file:
        return file.read(start, stop)
