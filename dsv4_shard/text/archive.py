"""Reads ZIP archives from untrusted bytes within limits, which apply before anything is unpacked."""

import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO

from dsv4_shard.limits import Limit
from dsv4_shard.text.sanitize import short_name

LOCAL_BYTES, CENTRAL_BYTES, END_BYTES = 30, 46, 22
"""Bytes of a ZIP entry's two records without its name, and of the record at the end (APPNOTE.TXT 4.3)."""

_NAME_BYTES = 255
"""Bytes of a name, on average, for which there is room in the directory."""

_WAYS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compressions that are unpacked piece by piece. Python unpacks the others whole, whatever size is declared."""


class BadArchive(ValueError):
    """An archive is damaged or exceeds a limit. The message can follow its name."""


def read_archive(
    raw: bytes, packed: Limit, unpacked: Limit, check: Callable[[list[zipfile.ZipInfo]], None] = lambda entries: None
) -> dict[str, bytes]:
    """Return name → content of an archive that ends with its directory, without a comment.

    Args:
        raw: The archive.
        packed: Its largest size, and most entries.
        unpacked: The largest size of all content.
        check: Called with the entries before any is unpacked.

    Raises:
        BadArchive: It is damaged, has a name twice, or is beyond a limit.
    """
    if len(raw) > packed.nbytes:
        raise BadArchive(f"{len(raw):,} bytes, too large: at most {packed.nbytes:,} are read")
    _check_end(raw, packed)
    try:
        with zipfile.ZipFile(BytesIO(raw)) as archive:
            entries = archive.infolist()
            _check_entries(entries, packed, unpacked)
            check(entries)
            content = {entry.filename: _unpacked(archive, entry) for entry in entries}
    except BadArchive:
        raise
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, OSError) as error:
        raise BadArchive(f"damaged: {error}") from None
    return content


def _check_end(raw: bytes, packed: Limit) -> None:
    """Check the record at the end. Python makes an object of each entry of the directory, whose size it tells."""
    end, locator = raw[-END_BYTES:], raw[-END_BYTES - _LOCATOR_BYTES : -END_BYTES]
    if not end.startswith(b"PK\5\6") or not end.endswith(b"\0\0") or locator.startswith(b"PK\6\7"):
        raise BadArchive("damaged: does not end with the record of a small ZIP archive")
    if (directory := int.from_bytes(end[12:16], "little")) > packed.count * (CENTRAL_BYTES + _NAME_BYTES):
        raise BadArchive(f"a directory of {directory:,} bytes, too large for {packed.count:,} entries")


_LOCATOR_BYTES = 20


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return an entry's content. At most its declared size is unpacked."""
    if entry.compress_type not in _WAYS:
        raise BadArchive(f"{short_name(entry.filename)} is packed in a way that is not read")
    with archive.open(entry) as packed:
        content = packed.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise BadArchive(f"damaged: {short_name(entry.filename)} has not the size that is declared")
    return content


def _check_entries(entries: list[zipfile.ZipInfo], packed: Limit, unpacked: Limit) -> None:
    if len(entries) > packed.count:
        raise BadArchive(f"{len(entries):,} entries, too many: at most {packed.count:,} are read")
    if len({entry.filename for entry in entries}) != len(entries):
        raise BadArchive("a name stands twice")
    if (total := sum(entry.file_size for entry in entries)) > unpacked.nbytes:
        raise BadArchive(f"would unpack to {total:,} bytes: at most {unpacked.nbytes:,} are read")
