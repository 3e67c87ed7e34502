"""Sizes show something, in units that are as short as the number allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_shard.text.units import counted, gib, quotient


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (102, "102 B"), (103, "0.1 KiB"), (19_456, "19.0 KiB"), (17_420_000, "16.6 MiB"),
     (107_374_182, "102.4 MiB"), (107_374_183, "0.1 GiB"), (60_530_000_000, "56.4 GiB"), (1 << 40, "1024.0 GiB")],
)  # fmt: skip
def test_memory_is_in_gib_but_where_a_tenth_of_one_is_not_reached(nbytes: int, shown: str) -> None:
    assert gib(nbytes) == shown


@pytest.mark.parametrize(
    ("number", "divisor", "shown"),
    [(8, 64, "0.125"), (8, 256, "0.03125"), (192, 128, "1.5"), (3072, 16, "192"), (65536, 3, "21845.33"),
     (8, 3000, "0.002667"), (3, 8, "0.375"), (77, 128, "0.6016"), (2048, 24, "85.33"), (100, 3, "33.33"), (0, 7, "0")],
)  # fmt: skip
def test_a_quotient_is_exact_where_it_is_short_and_never_nothing_or_an_exponent(
    number: int, divisor: int, shown: str
) -> None:
    assert quotient(number, divisor) == shown


@given(number=st.integers(0, 1 << 20), divisor=st.integers(1, 4096))
def test_what_is_not_whole_never_looks_whole(number: int, divisor: int) -> None:
    assert ("." in quotient(number, divisor)) is (number % divisor > 0)


def test_one_is_singular_and_so_are_no_others() -> None:
    counts = [counted(number, "rank file") for number in (0, 1, 2, 1024)]
    assert counts == ["0 rank files", "1 rank file", "2 rank files", "1,024 rank files"]
