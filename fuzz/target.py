"""`Target`: seeds, a way to damage them, and a check that states a promise."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from dsv4_shard.errors import ShardError


@dataclass(frozen=True)
class Target:
    """`seeds` are valid inputs, `mutate` damages one, `check` raises where a promise is broken."""

    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]
    check: Callable[[bytes], None]


def check_message(error: ShardError) -> None:
    """What a refusal says can be encoded, and is no flood."""
    assert len(str(error)) < 10_000, f"a message of {len(str(error))} characters"
    str(error).encode()
    assert error.hint


def memory_folder() -> str | None:
    """Where a file costs least."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """The bytes with one to three flips, cuts, insertions or repetitions."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at, length = random.randrange(len(changed) + 1), random.choice((1, 1, 2, 4, 8, 64))
        match random.randrange(4):
            case 0 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = random.randbytes(length)
            case _:
                changed[at:at] = changed[at : at + length]
    return bytes(changed)
