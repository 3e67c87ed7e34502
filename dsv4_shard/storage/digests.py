"""Digests of what is written: xxh3-128, which finds damage, not forgery, at the speed of memory."""

from collections.abc import Iterable

import xxhash

DIGEST_BYTES = 16


def digest_of(data: bytes | memoryview) -> str:
    """xxh3-128 in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


def tensor_digest(pieces: Iterable[bytes]) -> str:
    """The digest of a tensor from those of its pieces, in order; see `copying.CopyResult`."""
    digests = list(pieces)
    return digests[0].hex() if len(digests) == 1 else digest_of(b"".join(digests))
