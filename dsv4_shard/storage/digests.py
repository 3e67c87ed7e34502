"""xxh3-128 digests of pieces and tensors. They detect damage, not forgery, and run at memory speed."""

from collections.abc import Iterable

import xxhash

DIGEST_BYTES = 16


def digest_of(data: bytes | memoryview) -> str:
    """Return the xxh3-128 of `data` as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def tensor_digest(pieces: Iterable[bytes]) -> str:
    """Return a tensor's digest in hexadecimal, from the 16-byte digests of its pieces in order.

    The digest of one piece is the tensor's own; of several, it is the digest of their concatenated digests.
    """
    digests = list(pieces)
    return digests[0].hex() if len(digests) == 1 else digest_of(b"".join(digests))
