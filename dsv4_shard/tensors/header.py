"""Safetensors headers: a strict reader and an exact writer.

The format: eight bytes, the header's length as a little-endian u64; that many bytes of JSON, padded with spaces; then
the tensors' bytes, which cover the rest of the file exactly. The reader is at least as strict as the safetensors
library (tests hold the two against each other), and also rejects what that accepts by accident: a key that stands
twice, and space before the opening brace. The writer's bytes are those of `safetensors.torch.save_file`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from dsv4_shard.errors import (
    BadTensorEntry,
    BadTensorOffsets,
    DuplicateKey,
    GitLfsPointer,
    HeaderNotJson,
    HeaderTooLarge,
    NotSafetensors,
    TruncatedFile,
)
from dsv4_shard.text.sanitize import short
from dsv4_shard.text.strict_json import BadJson, DuplicateJsonKey, is_plain, parse_json

LENGTH_BYTES = 8

MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit (`MAX_HEADER_SIZE` in tensor.rs)."""

DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, in the order of safetensors' `Dtype` enum: the writer sorts by descending place in it."""

_DTYPE_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}

_ALIGNMENT = {dtype: max(bits // 8, 1) for dtype, bits in DTYPE_BITS.items()}

_INT_ALONE = frozenset({int})

_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}

_LFS_MAGIC = b"version https://git-lfs"

_MAX_ELEMENTS = 2**63


class TensorInfo(NamedTuple):
    """What a header says of one tensor: `shape` in elements, `[start, stop)` in bytes from the data's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. `data_start` is where in the file the tensors' bytes begin."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    warnings: tuple[str, ...] = field(default=())


class ByteReader(Protocol):
    """Random access to one file's bytes."""

    nbytes: int

    def read(self, start: int, stop: int) -> bytes: ...


def nbytes_of(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of known dtype; a sub-byte tensor must end on a byte."""
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8:
        raise BadTensorEntry(f"{dtype} {list(shape)} is {bits} bits: a tensor must end on a byte")
    return bits // 8


def header_nbytes(file: ByteReader) -> int:
    """Where the tensors' bytes begin in a file whose header was found sound."""
    return LENGTH_BYTES + int.from_bytes(file.read(0, LENGTH_BYTES), "little")


def read_header(file: ByteReader, name: str) -> Header:
    """Read and check the header of `file`; `name` is how errors call it.

    Reads only the header. Raises a `HeaderError` with the file's name and the numbers that contradict each other.
    """
    if file.nbytes < LENGTH_BYTES:
        raise NotSafetensors(f"{name}: {file.nbytes} bytes, too short for a safetensors header")
    prefix = file.read(0, min(file.nbytes, len(_LFS_MAGIC)))
    if prefix.startswith(_LFS_MAGIC):
        raise GitLfsPointer(f"{name}: a Git-LFS pointer of {file.nbytes} bytes, not the weights themselves")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    room = file.nbytes - LENGTH_BYTES
    if length > MAX_HEADER_BYTES:
        raise HeaderTooLarge(f"{name}: header of {length} bytes, over the format's limit of {MAX_HEADER_BYTES}")
    if length > room:
        raise HeaderTooLarge(f"{name}: header of {length} bytes, but only {room} bytes follow its length")
    return parse_header(file.read(LENGTH_BYTES, LENGTH_BYTES + length), file.nbytes, name)


def parse_header(raw: bytes, file_nbytes: int, name: str) -> Header:
    """Check the JSON part `raw` of a file of `file_nbytes` bytes. Raises as `read_header` does."""
    document, padding_warning = _decode(raw, name)
    warnings = _Warnings(name)
    if padding_warning:
        warnings.add("padded with white space other than blanks")
    metadata = _check_metadata(document, warnings, name)
    tensors: dict[str, TensorInfo] = {}
    kinds: dict[tuple[object, ...], TensorInfo] = {}
    for key, entry in document.items():
        info = _like_one_before(entry, kinds)
        if info is None:
            info = _check_entry(key, entry, warnings, name)
            kinds[info.dtype, *info.shape] = info
        tensors[key] = info
    data_start = LENGTH_BYTES + len(raw)
    _check_coverage(tensors, file_nbytes - data_start, name)
    for key, info in tensors.items():
        if (data_start + info.start) % _ALIGNMENT[info.dtype]:
            warnings.add("tensors not aligned to their element size", key)
    return Header(tensors, metadata, data_start, warnings.lines())


def _decode(raw: bytes, name: str) -> tuple[dict[str, Any], bool]:
    if not raw.startswith(b"{"):
        raise NotSafetensors(f"{name}: the header starts with {raw[:4]!r}, not with '{{'")
    try:
        document = parse_json(raw)
    except DuplicateJsonKey as error:
        raise DuplicateKey(f"{name}: header: {error}") from None
    except BadJson as error:
        raise HeaderNotJson(f"{name}: header: {error}") from None
    return document, raw.rstrip(b" ")[-1:] in (b"\n", b"\r", b"\t")


def _check_metadata(document: dict[str, Any], warnings: "_Warnings", name: str) -> dict[str, str]:
    """Take `__metadata__` out of the document; `null` and `{}` are odd but harmless."""
    if "__metadata__" not in document:
        return {}
    metadata = document.pop("__metadata__")
    if not metadata:
        warnings.add("empty __metadata__")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderNotJson(f"{name}: __metadata__ must map strings to strings")
    return metadata


def _is_naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < _MAX_ELEMENTS for value in values)


def _elements(shape: list[int]) -> int | None:
    """The product, or None where it overflows, zeros or not; a million sizes must not be multiplied out first."""
    product = 1
    for size in shape:
        if size:
            product *= size
            if product >= _MAX_ELEMENTS:
                return None
    return 0 if 0 in shape else product


def _like_one_before(entry: Any, kinds: Mapping[tuple[object, ...], TensorInfo]) -> TensorInfo | None:
    """A sound entry whose dtype and shape stood in the header before, None for any other.

    A layer's header has thousands of entries and some thirty kinds: here only the offsets are looked at, and the shape
    is that of the one before. What is not sound is for `_check_entry` to tell.
    """
    if not (type(entry) is dict and len(entry) == len(_ENTRY_KEYS)):
        return None
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (type(dtype) is str and type(shape) is list and type(offsets) is list and len(offsets) == 2):
        return None
    # 1.0 and True are keys equal to 1, but no natural numbers.
    if not _INT_ALONE.issuperset(map(type, (*shape, *offsets))):
        return None
    kind = kinds.get((dtype, *shape))
    start, stop = offsets
    if kind is None or start < 0 or stop >= _MAX_ELEMENTS or stop - start != kind.nbytes:
        return None
    return TensorInfo(kind.dtype, kind.shape, start, stop)


def _check_entry(key: str, entry: object, warnings: "_Warnings", name: str) -> TensorInfo:
    where = f"{name}: tensor {short(key)}"
    if not isinstance(entry, dict) or not entry.keys() >= _ENTRY_KEYS:
        raise BadTensorEntry(f"{where}: needs dtype, shape and data_offsets")
    if len(entry) > len(_ENTRY_KEYS):
        for field_name, value in entry.items():
            if field_name not in _ENTRY_KEYS and not is_plain(value):
                raise BadTensorEntry(f"{where}: unknown field {short(field_name)} holds what JSON readers disagree on")
        warnings.add("unknown fields in tensor entries", key)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise BadTensorEntry(f"{where}: unknown dtype {short(dtype)}")
    if not _is_naturals(shape):
        raise BadTensorEntry(f"{where}: shape {short(shape)} is not a list of natural numbers")
    if not _is_naturals(offsets) or len(offsets) != 2:
        raise BadTensorEntry(f"{where}: data_offsets {short(offsets)} is not a pair of natural numbers")
    start, stop = offsets
    if start > stop:
        raise BadTensorEntry(f"{where}: data_offsets [{start}, {stop}] are reversed")
    elements = _elements(shape)
    if elements is None:
        raise BadTensorEntry(f"{where}: shape {short(shape)} overflows")
    bits = elements * DTYPE_BITS[dtype]
    if bits % 8:
        raise BadTensorEntry(f"{where}: {dtype} {short(shape)} is {bits} bits: a tensor must end on a byte")
    if bits // 8 != stop - start:
        raise BadTensorEntry(f"{where}: {dtype} {short(shape)} is {bits // 8} bytes, data_offsets give {stop - start}")
    return TensorInfo(dtype, tuple(shape), start, stop)


def _check_coverage(tensors: Mapping[str, TensorInfo], data_nbytes: int, name: str) -> None:
    """The tensors must cover the data exactly: no hole, no overlap, nothing after the last."""
    end = 0
    for info in sorted(tensors.values(), key=itemgetter(2, 3)):
        if info.start != end:
            key = next(key for key, other in tensors.items() if other is info)
            kind = "overlaps the tensor before it" if info.start < end else "leaves a hole before it"
            raise BadTensorOffsets(f"{name}: tensor {short(key)} at byte {info.start} {kind}, which ends at {end}")
        end = info.stop
    if end > data_nbytes:
        raise TruncatedFile(
            f"{name}: truncated: the header describes {end} bytes of tensors, the file holds {data_nbytes} "
            f"({end - data_nbytes} missing)"
        )
    if end < data_nbytes:
        raise BadTensorOffsets(f"{name}: {data_nbytes - end} bytes follow the last tensor, which ends at {end}")


class _Warnings:
    """What is odd but harmless, one line a kind with the first place and the count."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kinds: dict[str, list[str | None]] = {}

    def add(self, kind: str, place: str | None = None) -> None:
        self._kinds.setdefault(kind, []).append(place)

    def lines(self) -> tuple[str, ...]:
        return tuple(
            f"{self._name}: {kind}" + (f": {short(places[0])}" if places[0] is not None else "")
            + (f" and {len(places) - 1} more" if len(places) > 1 else "")
            for kind, places in self._kinds.items()
        )  # fmt: skip


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, TensorInfo]]:
    """The bytes of a file up to its data, and where each tensor goes.

    `tensors` maps names to (dtype, shape). Order and padding are those of safetensors' own writer: by descending dtype
    rank, then by name, so that every tensor is aligned; the JSON is padded with blanks to a multiple of eight.
    """
    # Characters sort as their UTF-8 does.
    order = sorted(tensors)
    order.sort(key=lambda name: -_DTYPE_RANK[tensors[name][0]])
    # Written out by hand: as one document for `json`, a rank's 12,000 tensors take twice as long, and 6 MB.
    entries = [f'"__metadata__":{_json(dict(metadata))}'] if metadata else []
    kinds = {kind: (nbytes_of(*kind), _json(kind[1])) for kind in {(dtype, shape) for dtype, shape in tensors.values()}}
    placed: dict[str, TensorInfo] = {}
    stop = 0
    for name in order:
        dtype, shape = tensors[name]
        nbytes, sizes = kinds[dtype, shape]
        start, stop = stop, stop + nbytes
        placed[name] = TensorInfo(dtype, shape, start, stop)
        entries.append(f'{_json(name)}:{{"dtype":"{dtype}","shape":{sizes},"data_offsets":[{start},{stop}]}}')
    text = f"{{{','.join(entries)}}}".encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, placed


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Tensor(NamedTuple):
    """A tensor of the checkpoint: `shape` in stored elements, `[start, stop)` in bytes of the file called `file`.

    `name` is its family's for it, whatever the file calls it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start
