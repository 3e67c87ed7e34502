"""Pairs of attention DP and EP that an engine offers on a number of GPUs."""

import itertools
from collections.abc import Iterable

Pairs = tuple[tuple[int, int], ...]
"""Pairs (DP, EP), each number at least 1."""


def divisors(number: int) -> list[int]:
    """Whole numbers that divide `number`, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def pairs(dps: Iterable[int], eps: Iterable[int]) -> Pairs:
    """Every DP with every EP, each pair once."""
    return tuple(dict.fromkeys(itertools.product(dps, eps)))


def every_divisor(world: int) -> Pairs:
    """Pairs in which DP and EP each divide the number of GPUs."""
    return pairs(divisors(world), divisors(world))


def ep_off_or_all(world: int) -> Pairs:
    """Pairs in which DP divides the number of GPUs, and EP is off or spans all of them."""
    return pairs(divisors(world), (1, world))


def dp_alone(world: int) -> Pairs:
    """Pairs in which DP divides the number of GPUs, and the engine chooses EP."""
    return pairs(divisors(world), (1,))


def no_choice(world: int) -> Pairs:
    """The only pair of an engine without a choice: no DP, and the engine's own EP."""
    return ((1, 1),)


def ep_option(ep: int) -> int | None:
    """EP as a value of a request: None, the engine's choice, for 1."""
    return ep if ep > 1 else None
