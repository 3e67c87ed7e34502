"""source.zip: config, index and all headers of the checkpoint that rank files are made from.

The rank files do not contain this information. With it, a checkpoint can be reassembled from them, byte for byte,
headers included. Each weight file's header (length and JSON, no tensors) is stored under the file's name. An archive
that is read is untrusted: all declared sizes are checked against limits before anything is unpacked.
"""

import zipfile
import zlib
from io import BytesIO

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.errors import BadSkeleton
from dsv4_shard.sources.checkpoint_files import (
    CONFIG_FILE,
    INDEX_FILE,
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    is_plain_name,
)
from dsv4_shard.tensors.header import LENGTH_BYTES, MAX_HEADER_BYTES, header_nbytes
from dsv4_shard.text.sanitize import short_name

SKELETON_NAME = "source.zip"

MAX_SKELETON_BYTES = 64 << 20
"""V4-Pro needs 2 MB."""

MAX_ENTRIES = 10_000

MAX_UNPACKED_BYTES = 256 << 20
"""V4-Pro's config, index and headers take 27 MB."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that the format can store. A fixed time makes the archive reproducible."""

_LIMITS = {CONFIG_FILE: MAX_CONFIG_BYTES, INDEX_FILE: MAX_INDEX_BYTES}


def write_skeleton(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint's archive. Raises ReadFailed."""
    source, packed = checkpoint.source, BytesIO()
    there = source.sizes()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in [CONFIG_FILE, *((INDEX_FILE,) if INDEX_FILE in there else ()), *(f.name for f in checkpoint.files)]:
            with source.open(name) as file:
                stop = file.nbytes if name in _LIMITS else header_nbytes(file)
                content = file.read(0, stop)
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED, compresslevel=1)
    return packed.getvalue()


def read_skeleton(raw: bytes, where: str) -> dict[str, bytes]:
    """The content of an archive by name: config.json, perhaps an index, and the headers of weight files.

    `where` names the archive in errors. Raises BadSkeleton; nothing is unpacked if the declared sizes exceed the
    limits.
    """
    try:
        with zipfile.ZipFile(BytesIO(raw)) as archive:
            entries = archive.infolist()
            _check_entries(entries, where)
            if sum(map(_packed_nbytes, entries)) + _END_BYTES != len(raw):
                raise BadSkeleton(f"{where}: damaged: holds bytes that belong to no entry")
            content = {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, OSError) as error:
        raise BadSkeleton(f"{where}: damaged: {error}") from None
    for entry in entries:
        if len(content[entry.filename]) != entry.file_size:
            raise BadSkeleton(f"{where}: damaged: {entry.filename} has not the size that is declared")
    for name, header in content.items():
        if name not in _LIMITS and len(header) != LENGTH_BYTES + int.from_bytes(header[:LENGTH_BYTES], "little"):
            raise BadSkeleton(f"{where}: {name}: {len(header):,} bytes, which is not what its length says")
    return content


_LOCAL_BYTES, _CENTRAL_BYTES, _END_BYTES = 30, 46, 22
"""Bytes of a ZIP entry's two records without its name, and of the record at the end (APPNOTE.TXT 4.3)."""


def _packed_nbytes(entry: zipfile.ZipInfo) -> int:
    """Bytes of an entry as `write_skeleton` packs it: no extra fields, no comment, nothing after the data."""
    return _LOCAL_BYTES + _CENTRAL_BYTES + 2 * len(entry.filename.encode()) + entry.compress_size


def _check_entries(entries: list[zipfile.ZipInfo], where: str) -> None:
    """Check the names and declared sizes of an archive. Raises BadSkeleton."""
    names = [entry.filename for entry in entries]
    if len(names) > MAX_ENTRIES or len(set(names)) != len(names) or CONFIG_FILE not in names:
        raise BadSkeleton(f"{where}: {len(names):,} entries: too many, or one that stands twice, or no {CONFIG_FILE}")
    total = 0
    for entry in entries:
        if entry.filename not in _LIMITS and not is_plain_name(entry.filename):
            raise BadSkeleton(f"{where}: {short_name(entry.filename)} is no file of a checkpoint")
        limit = _LIMITS.get(entry.filename, LENGTH_BYTES + MAX_HEADER_BYTES)
        total += entry.file_size
        if entry.file_size > limit or total > MAX_UNPACKED_BYTES:
            raise BadSkeleton(f"{where}: {entry.filename} would unpack to {entry.file_size:,} bytes, beyond the limit")
