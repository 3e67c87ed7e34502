"""Files that come whole are compared with the SHA-256 of their repository, in whatever order their blocks come."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_shard.errors import DamagedTransfer, ExitCode
from dsv4_shard.sources import sha256_check
from dsv4_shard.sources.prefetch import FetchRange
from dsv4_shard.sources.sha256_check import Sha256Check

CONTENT = np.random.default_rng(1).bytes(5000)
HEAD = CONTENT[:700]
EDGES = [700, 1000, 2500, 2600, 4000, 5000]
BLOCKS = [FetchRange("f", start, stop, stop - start) for start, stop in pairwise(EDGES)]


def intact(due: str | None = None) -> Sha256Check:
    return Sha256Check({"f": due or hashlib.sha256(CONTENT).hexdigest()}, {"f": HEAD, "g": b""}, {"f": 5000, "g": 10})


def take(held: Sha256Check, block: FetchRange, content: bytes = CONTENT) -> None:
    held.take(block, memoryview(content[block.start : block.stop]))


@given(st.permutations(BLOCKS))
def test_a_whole_file_passes_in_any_order(order: list[FetchRange]) -> None:
    held = intact()
    held.expect(BLOCKS)
    for block in order:
        take(held, block)
    assert held.passed == ["f"]


@given(st.permutations(BLOCKS), st.integers(700, 4999))
def test_one_wrong_byte_is_found(order: list[FetchRange], at: int) -> None:
    held, damaged = intact(), bytearray(CONTENT)
    damaged[at] ^= 1
    held.expect(BLOCKS)
    for block in order[:-1]:
        take(held, block, bytes(damaged))
    with pytest.raises(DamagedTransfer, match=r"f: the received bytes have SHA-256 .* the repository lists") as raised:
        take(held, order[-1], bytes(damaged))
    assert raised.value.exit_code == ExitCode.NETWORK
    assert held.passed == []


@pytest.mark.parametrize("blocks", [BLOCKS[1:], BLOCKS[:-1], BLOCKS[:2] + BLOCKS[3:], [*BLOCKS, BLOCKS[1]]])
def test_a_file_that_does_not_come_whole_and_once_is_not_judged(blocks: list[FetchRange]) -> None:
    held = intact(due="0" * 64)
    held.expect(blocks)
    for block in blocks:
        take(held, block)
    assert held.passed == []


def test_a_file_whose_bytes_would_wait_for_too_long_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4_shard.sources.sha256_check.MAX_ASIDE_BYTES", 1500)
    held = intact(due="0" * 64)
    held.expect([BLOCKS[1], BLOCKS[2], *BLOCKS[3:], BLOCKS[0]])
    for block in BLOCKS:
        take(held, block)
    assert held.passed == []


def test_a_file_without_a_digest_is_not_judged() -> None:
    held = intact()
    held.expect([FetchRange("g", 0, 10, 10)])
    held.take(FetchRange("g", 0, 10, 10), memoryview(bytes(10)))
    assert held.passed == []


@pytest.mark.slow
def test_many_threads_hash_each_byte_once() -> None:
    blocks = [FetchRange("f", start, start + 10, 10) for start in range(700, 5000, 10)]
    for _ in range(20):
        held = intact()
        held.expect(blocks)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda block, held=held: take(held, block), blocks))
        assert held.passed == ["f"]


def test_the_thread_of_the_last_byte_alone_judges_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others hash all that is left between what the first hashes and its look at how far the file is."""
    held, (first, *others) = intact(), BLOCKS
    held.expect(BLOCKS)
    real = sha256_check._OrderedHash.take

    def overtaken(ordered: sha256_check._OrderedHash, start: int, data: memoryview) -> int | None:
        came_to = real(ordered, start, data)
        monkeypatch.setattr(sha256_check._OrderedHash, "take", real)
        for block in others:
            take(held, block)
        return came_to

    monkeypatch.setattr(sha256_check._OrderedHash, "take", overtaken)
    take(held, first)
    assert held.passed == ["f"]
