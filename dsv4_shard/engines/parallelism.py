"""Attention DP × EP on a number of GPUs: the pairs that an engine offers."""

import itertools
from collections.abc import Iterable

Pairs = tuple[tuple[int, int], ...]
"""(DP, EP), each at least 1."""


def divisors(number: int) -> list[int]:
    """Whole numbers that divide `number`, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def pairs(dps: Iterable[int], eps: Iterable[int]) -> Pairs:
    """Every DP with every EP, each pair once."""
    return tuple(dict.fromkeys(itertools.product(dps, eps)))


def every_divisor(world: int) -> Pairs:
    """DP and EP are any numbers that divide the GPUs."""
    return pairs(divisors(world), divisors(world))


def ep_off_or_all(world: int) -> Pairs:
    """DP divides the GPUs; EP is off or spans all of them."""
    return pairs(divisors(world), (1, world))


def dp_alone(world: int) -> Pairs:
    """DP divides the GPUs; EP is left to the engine."""
    return pairs(divisors(world), (1,))


def no_choice(world: int) -> Pairs:
    """The engine offers one way: no DP, and the EP that it takes by itself."""
    return ((1, 1),)


def ep_option(ep: int) -> int | None:
    """EP as a request asks for it: 1 is left to the engine."""
    return ep if ep > 1 else None
