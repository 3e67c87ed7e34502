"""KV cache: the room that an engine leaves for it, and the sessions that fit into a room.

An engine takes a share of a GPU's memory for weights and KV cache (`--mem-fraction-static`,
`--gpu-memory-utilization`). What else it holds (CUDA context, communicators, activations, graphs) is only measured, in
published logs, so a room has bounds (`MemoryShare`). How a room becomes tokens is arithmetic of the engine's own code,
which `tests/data/kv_cache` compares with that code. `Cache` joins both, for one deployment. There is one KV head, so
every rank of an attention TP group holds the whole cache of its sessions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from dsv4_shard.engines.deployment import Context
from dsv4_shard.models import OVERLAP_RATIO, V4, V4Config

GIB = 1 << 30

TOLERANCE = Fraction(15, 100)
"""A number of tokens is only shown if the bounds of the room change it by no more than this."""


class Pool(Protocol):
    """Turns a rank's room for KV cache into tokens and sessions, as the engine does. `length` is in tokens."""

    def tokens(self, room: int, length: int) -> int:
        """Tokens that the engine prints for `room` bytes, if sessions are as long as `length`."""

    def sessions(self, room: int, length: int) -> int:
        """Sessions of `length` tokens that are in `room` bytes at once."""

    def needs(self, length: int) -> int:
        """Fewest bytes of room in which the engine serves one session of `length` tokens."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """A measured number of bytes: the least and the most that logs show, and a likely one between them."""

    least: int
    likely: int
    most: int


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """The share of a GPU's memory that an engine takes for weights and KV cache.

    Attributes:
        option: The engine's option for the share.
        share: The engine's default for it.
        before: Bytes that are taken before the engine measures the memory of which it takes the share.
        beside: Other bytes within the share, beside weights and KV cache.
    """

    option: str
    share: float
    before: Bounds
    beside: Bounds

    def room(self, memory: int, weights: int) -> Bounds:
        """Bytes for KV cache on a GPU of `memory` bytes beside `weights`; negative if weights exceed the share."""

        def left(before: int, beside: int) -> int:
            return int((memory - before) * self.share) - weights - beside

        return Bounds(
            left(self.before.most, self.beside.most),
            left(self.before.likely, self.beside.likely),
            left(self.before.least, self.beside.least),
        )

    def share_for(self, memory: int, weights: int, room: int) -> float:
        """The share that leaves `room` bytes for certain."""
        return (weights + self.beside.most + room) / (memory - self.before.most)


@dataclass(frozen=True, slots=True)
class Cache(MemoryShare):
    """The KV cache of one deployment; `pool` turns its room into tokens."""

    pool: Pool

    def never_fits(self, memory: int, weights: int) -> bool:
        """Whether even the whole memory, by the bounds that leave most, has no room for a single token."""
        return memory - self.before.least - weights - self.beside.least < self.pool.needs(1)

    def tokens(self, room: Bounds, length: int) -> int | None:
        """Tokens in the likely room, 0 if there is none for one; None if its bounds change them by over `TOLERANCE`."""
        if room.most < self.pool.needs(1):
            return 0
        if room.least <= 0:
            return None
        least, likely, most = (self.pool.tokens(nbytes, length) for nbytes in (room.least, room.likely, room.most))
        near = likely * (1 - TOLERANCE) <= least and most <= likely * (1 + TOLERANCE)
        return likely if near and likely else None

    def fits(self, room: Bounds, length: int) -> bool | None:
        """Whether a session of `length` tokens fits; None if that is within the bounds of the room."""
        needed = self.pool.needs(length)
        return None if room.least < needed <= room.most else needed <= room.least

    def longest(self, room: int, most: int) -> int:
        """The longest session, of at most `most` tokens, that fits into `room` bytes; 0 if none does."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.pool.needs(middle) <= room else (low, middle - 1)
        return low


CacheOf = Callable[[Context], Cache | None]


def not_known(context: Context) -> Cache | None:
    """None: the engine's cache code was not compared."""
    return None


_GEOMETRY = {"head_dim": 512, "qk_rope_head_dim": 64, "index_head_dim": 128, "sliding_window": 128}


def is_compared_model(context: Context) -> bool:
    """Whether the model is a V4 of the geometry that was compared: engines have fixed sizes for its rows and pages."""
    config = context.config
    if context.inventory.family is not V4 or any(getattr(config, key) != size for key, size in _GEOMETRY.items()):
        return False
    ratios = set(context.v4.compress_ratios[: config.num_hidden_layers])
    return OVERLAP_RATIO in ratios <= {0, OVERLAP_RATIO, 128}


def up_to(number: int, unit: int) -> int:
    """`number` rounded up to a multiple of `unit`."""
    return -(-number // unit) * unit


def padded_rows(rows: int, row: int, alignment: int = 576) -> int:
    """Bytes of a page of `rows` rows of `row` bytes, which FlashMLA's layout pads to 576 bytes."""
    return up_to(rows * row, alignment)


def latent_row(config: V4Config) -> int:
    """Bytes of a V4 row: the part without RoPE in FP8, RoPE in BF16, and 8 bytes of scales."""
    return config.head_dim + (config.qk_rope_head_dim or 0) + 8


def indexer_row(head_dim: int) -> int:
    """Bytes of an indexer's key in FP8, with an F32 scale for each 128 elements."""
    return head_dim + head_dim // 128 * 4
