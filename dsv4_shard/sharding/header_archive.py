"""source.zip: config, index and all headers of the checkpoint that rank files are made from.

The rank files do not contain this information. With it, a checkpoint can be reassembled from them, byte for byte,
headers included. Each weight file's header (length and JSON, no tensors) is stored under the file's name. An archive
that is read is untrusted: all declared sizes are checked against limits before anything is unpacked.
"""

import zipfile
from io import BytesIO

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.errors import BadSkeleton
from dsv4_shard.limits import ARCHIVE, HEADER, UNPACKED
from dsv4_shard.sources.checkpoint_files import (
    CONFIG_FILE,
    INDEX_FILE,
    LIMITS,
    is_plain_name,
)
from dsv4_shard.tensors.header import LENGTH_BYTES, header_nbytes
from dsv4_shard.text.archive import CENTRAL_BYTES, END_BYTES, LOCAL_BYTES, BadArchive, read_archive
from dsv4_shard.text.sanitize import short_name

SKELETON_NAME = "source.zip"

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that the format can store. A fixed time makes the archive reproducible."""


def write_skeleton(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint's archive. Raises ReadFailed."""
    source, packed = checkpoint.source, BytesIO()
    there = source.sizes()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in [CONFIG_FILE, *((INDEX_FILE,) if INDEX_FILE in there else ()), *(f.name for f in checkpoint.files)]:
            with source.open(name) as file:
                stop = file.nbytes if name in LIMITS else header_nbytes(file)
                content = file.read(0, stop)
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED, compresslevel=1)
    return packed.getvalue()


def read_skeleton(raw: bytes, where: str) -> dict[str, bytes]:
    """The content of an archive by name: config.json, perhaps an index, and the headers of weight files.

    `where` names the archive in errors. Raises BadSkeleton; nothing is unpacked if the declared sizes exceed the
    limits.
    """

    def check(entries: list[zipfile.ZipInfo]) -> None:
        _check_entries(entries)
        if sum(map(_packed_nbytes, entries)) + END_BYTES != len(raw):
            raise BadArchive("damaged: holds bytes that belong to no entry")

    try:
        content = read_archive(raw, ARCHIVE, UNPACKED, check)
    except BadArchive as error:
        raise BadSkeleton(f"{where}: {error}") from None
    for name, header in content.items():
        if name not in LIMITS and len(header) != LENGTH_BYTES + int.from_bytes(header[:LENGTH_BYTES], "little"):
            raise BadSkeleton(f"{where}: {name}: {len(header):,} bytes, which is not its recorded length")
    return content


def _packed_nbytes(entry: zipfile.ZipInfo) -> int:
    """Bytes of an entry as `write_skeleton` packs it: no extra fields, no comment, nothing after the data."""
    return LOCAL_BYTES + CENTRAL_BYTES + 2 * len(entry.filename.encode()) + entry.compress_size


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    """Check the names and declared sizes of an archive. Raises BadArchive."""
    if CONFIG_FILE not in {entry.filename for entry in entries}:
        raise BadArchive(f"{len(entries):,} entries, but no {CONFIG_FILE}")
    for entry in entries:
        if entry.filename not in LIMITS and not is_plain_name(entry.filename):
            raise BadArchive(f"{short_name(entry.filename)} is not a file of a checkpoint")
        limit = LIMITS.get(entry.filename)
        most = limit.nbytes if limit else LENGTH_BYTES + HEADER.nbytes
        if entry.file_size > most:
            raise BadArchive(f"{entry.filename} would unpack to {entry.file_size:,} bytes: at most {most:,} are read")
