"""Digests of what is written: xxh3-128, which finds damage, not forgery, at the speed of memory."""

from collections.abc import Callable, Iterable

import xxhash

from dsv4_shard.sources.base import CHUNK_BYTES
from dsv4_shard.sources.local import LocalFile
from dsv4_shard.tensors.header import Header

DIGEST_BYTES = 16


def digest_of(data: bytes | memoryview) -> str:
    """xxh3-128 in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


def tensor_digest(pieces: Iterable[bytes]) -> str:
    """The digest of a tensor from those of its pieces, in order; see `copying.CopyResult`."""
    digests = list(pieces)
    return digests[0].hex() if len(digests) == 1 else digest_of(b"".join(digests))


def hash_tensor(
    file: LocalFile,
    header: Header,
    name: str,
    pieces: tuple[tuple[int, int], ...] | None,
    on_progress: Callable[[int], None],
    *,
    once: bool = False,
) -> str:
    """The digest of a tensor as it stands in `file`, computed as `reshard` did: see `tensor_digest`.

    `pieces` are its runs of equal pieces as (count, bytes), None for a tensor of one piece. `on_progress` is given the
    bytes of each read; `once` keeps them out of the page cache. Raises ReadFailed.
    """
    info = header.tensors[name]
    start = header.data_start + info.start
    buffer = memoryview(bytearray(min(CHUNK_BYTES, info.nbytes)))
    digests = []
    for count, nbytes in pieces or ((1, info.nbytes),):
        for _ in range(count):
            running = xxhash.xxh3_128()
            for position in range(start, start + nbytes, CHUNK_BYTES):
                data = buffer[: min(CHUNK_BYTES, start + nbytes - position)]
                file.readinto(position, data, once=once)
                running.update(data)
                on_progress(len(data))
            digests.append(running.digest())
            start += nbytes
    return tensor_digest(digests)
