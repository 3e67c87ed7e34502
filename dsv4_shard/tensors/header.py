"""Safetensors headers: a strict reader, an exact writer and the table of dtypes.

A file begins with eight bytes, the header's length as a little-endian u64. That many bytes of JSON follow, padded with
spaces. The tensors' bytes cover the rest of the file exactly. The reader is at least as strict as the safetensors
library (tests compare the two). It also rejects duplicate keys and white space before the opening brace, which the
library accepts. The writer produces the same bytes as `safetensors.torch.save_file`,
or, for files that are read directly, another order of the tensors, which every reader takes.
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
from dsv4_shard.limits import HEADER
from dsv4_shard.tensors.header_scan import TensorInfo as TensorInfo
from dsv4_shard.tensors.header_scan import scan
from dsv4_shard.text.sanitize import short
from dsv4_shard.text.strict_json import BadJson, DuplicateJsonKey, check_size, is_plain, parse_json

LENGTH_BYTES = 8

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
"""Dtype → bits of one element, in the order of safetensors' `Dtype` enum. The writer sorts by descending position."""

_DTYPE_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}

_ALIGNMENT = {dtype: max(bits // 8, 1) for dtype, bits in DTYPE_BITS.items()}

_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}

_LFS_MAGIC = b"version https://git-lfs"

_MAX_ELEMENTS = 2**63


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Attributes:
        tensors: Name → entry, in the order of the header.
        metadata: The header's `__metadata__`, without it empty.
        data_start: Byte of the file at which the tensors' bytes begin.
        warnings: Lines about harmless oddities.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    warnings: tuple[str, ...] = field(default=())


class ByteReader(Protocol):
    """Random access to one file of `nbytes` bytes."""

    nbytes: int

    def read(self, start: int, stop: int) -> bytes: ...


def nbytes_of(dtype: str, shape: Iterable[int]) -> int:
    """Return a tensor's bytes. `dtype` must be a key of DTYPE_BITS, `shape` is in elements.

    Raises BadTensorEntry if a sub-byte tensor does not end on a byte.
    """
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8:
        raise BadTensorEntry(f"{dtype} {list(shape)} is {bits} bits: a tensor must end on a byte")
    return bits // 8


def header_nbytes(file: ByteReader) -> int:
    """Return the byte at which the tensors' bytes begin, in a file whose header has been checked."""
    return LENGTH_BYTES + int.from_bytes(file.read(0, LENGTH_BYTES), "little")


def read_header(file: ByteReader, name: str) -> Header:
    """Read and check the header of `file`, and nothing else of it. `name` is the file's name in errors.

    Raises a HeaderError of the class that names the broken rule, with the numbers that contradict each other.
    """
    if file.nbytes < LENGTH_BYTES:
        raise NotSafetensors(f"{name}: {file.nbytes} bytes, too short for a safetensors header")
    prefix = file.read(0, min(file.nbytes, len(_LFS_MAGIC)))
    if prefix.startswith(_LFS_MAGIC):
        raise GitLfsPointer(f"{name}: a Git-LFS pointer of {file.nbytes} bytes, not the weights themselves")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    room = file.nbytes - LENGTH_BYTES
    if length > HEADER.nbytes:
        raise HeaderTooLarge(f"{name}: header of {length:,} bytes, too large: at most {HEADER.nbytes:,} are read")
    if length > room:
        raise HeaderTooLarge(f"{name}: header of {length} bytes, but only {room} bytes follow its length")
    return parse_header(file.read(LENGTH_BYTES, LENGTH_BYTES + length), file.nbytes, name)


def parse_header(raw: bytes, file_nbytes: int, name: str) -> Header:
    """Check the JSON part `raw` of the header of a file of `file_nbytes` bytes. Raises as `read_header` does."""
    warnings = _Warnings(name)
    found = _scan(raw)
    tensors, metadata = _parse(raw, warnings, name) if found is None else found
    data_start = LENGTH_BYTES + len(raw)
    _check_coverage(tensors, file_nbytes - data_start, name)
    for key, info in tensors.items():
        if (data_start + info.start) % _ALIGNMENT[info.dtype]:
            warnings.add("tensors not aligned to their element size", key)
    return Header(tensors, metadata, data_start, warnings.lines())


def _scan(raw: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]] | None:
    """Return tensors and metadata of a header in the writer's own format; None for another, which `_parse` reads."""
    try:
        check_size(raw, HEADER)
    except BadJson:
        return None
    return scan(raw, DTYPE_BITS)


def _parse(raw: bytes, warnings: "_Warnings", name: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return tensors and metadata of any header. Raises the HeaderError of the first rule that it breaks."""
    document, padding_warning = _decode(raw, name)
    if padding_warning:
        warnings.add("padded with white space other than blanks")
    metadata = _check_metadata(document, warnings, name)
    tensors: dict[str, TensorInfo] = {}
    kinds: dict[tuple[object, ...], TensorInfo] = {}
    for key, entry in document.items():
        info = _check_entry(key, entry, warnings, name)
        alike = kinds.setdefault((info.dtype, info.shape), info)  # thousands share thirty kinds
        tensors[key] = TensorInfo(alike.dtype, alike.shape, info.start, info.stop)
    return tensors, metadata


def _decode(raw: bytes, name: str) -> tuple[dict[str, Any], bool]:
    if not raw.startswith(b"{"):
        raise NotSafetensors(f"{name}: the header starts with {raw[:4]!r}, not with '{{'")
    try:
        document = parse_json(raw, HEADER)
    except DuplicateJsonKey as error:
        raise DuplicateKey(f"{name}: header: {error}") from None
    except BadJson as error:
        raise HeaderNotJson(f"{name}: header: {error}") from None
    return document, raw.rstrip(b" ")[-1:] in (b"\n", b"\r", b"\t")


def _check_metadata(document: dict[str, Any], warnings: "_Warnings", name: str) -> dict[str, str]:
    """Remove `__metadata__` from the document and return it. `null` and `{}` only cause a warning.

    Raises HeaderNotJson if it does not map strings to strings.
    """
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
    """Return the product of the sizes, or None if the product of the nonzero sizes overflows.

    The product is checked at each step, because a hostile header may have a million sizes.
    """
    product = 1
    for size in shape:
        if size:
            product *= size
            if product >= _MAX_ELEMENTS:
                return None
    return 0 if 0 in shape else product


def _check_entry(key: str, entry: object, warnings: "_Warnings", name: str) -> TensorInfo:
    """Check dtype, shape and offsets of the tensor `key` in the file `name`. Raises BadTensorEntry."""
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
    """Check that the tensors cover the data exactly, without hole, overlap or bytes after the last one.

    Raises TruncatedFile if the file is too short, else BadTensorOffsets.
    """
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
    """Collects harmless oddities: one line per kind, with the first place and the count."""

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


PAGE_BYTES = 4096
"""Direct reads (O_DIRECT, GPUDirect Storage) begin and end at a multiple of this."""

LARGE_BYTES = 1 << 20
"""Tensors of at least so many bytes are worth a direct read of their own."""


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
    *,
    in_pages: bool = False,
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Return a file's bytes up to its data, and each tensor's entry.

    Order and padding are those of safetensors' own writer. Tensors are sorted by descending dtype rank, then by name,
    so that each one is aligned. The JSON is padded with spaces to a multiple of eight bytes.

    Args:
        tensors: Name → (dtype, shape in elements).
        metadata: Content of `__metadata__`, if any.
        in_pages: Pad the JSON so that the data begins at a multiple of PAGE_BYTES. Large tensors of whole pages come
            first, in the order of `tensors`: a format without holes can align no others.
    """
    kinds = {kind: (nbytes_of(*kind), _json(kind[1])) for kind in {(dtype, shape) for dtype, shape in tensors.values()}}
    paged = [name for name, kind in tensors.items() if in_pages and _is_paged(kinds[kind][0])]
    # Python sorts by code points, which is the order of the UTF-8 bytes.
    order = sorted(tensors.keys() - set(paged))
    order.sort(key=lambda name: -_DTYPE_RANK[tensors[name][0]])
    # Entries are formatted one by one: with `json` on one document, 12,000 tensors take twice as long, and 6 MB.
    entries = [f'"__metadata__":{_json(dict(metadata))}'] if metadata else []
    placed: dict[str, TensorInfo] = {}
    stop = 0
    for name in [*paged, *order]:
        dtype, shape = tensors[name]
        nbytes, sizes = kinds[dtype, shape]
        start, stop = stop, stop + nbytes
        placed[name] = TensorInfo(dtype, shape, start, stop)
        entries.append(f'{_json(name)}:{{"dtype":"{dtype}","shape":{sizes},"data_offsets":[{start},{stop}]}}')
    text = f"{{{','.join(entries)}}}".encode()
    text += b" " * (-(len(text) + LENGTH_BYTES) % (PAGE_BYTES if in_pages else LENGTH_BYTES))
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, placed


def _is_paged(nbytes: int) -> bool:
    return nbytes >= LARGE_BYTES and nbytes % PAGE_BYTES == 0


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Tensor(NamedTuple):
    """A tensor of the checkpoint.

    Attributes:
        name: The family's name for it, even if the file uses another tool's name.
        dtype: Stored dtype.
        shape: Shape in stored elements.
        file: Name of its file.
        start: First byte in the file, counted from the beginning of the file.
        stop: End byte in the file, exclusive.
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
