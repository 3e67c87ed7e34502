"""Sizes show something, in units that are as short as the number allows."""

import pytest

from dsv4_shard.units import gib


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (102, "102 B"), (103, "0.1 KiB"), (19_456, "19.0 KiB"), (17_420_000, "16.6 MiB"),
     (107_374_182, "102.4 MiB"), (107_374_183, "0.1 GiB"), (60_530_000_000, "56.4 GiB"), (1 << 40, "1024.0 GiB")],
)  # fmt: skip
def test_memory_is_in_gib_but_where_a_tenth_of_one_is_not_reached(nbytes, shown):
    assert gib(nbytes) == shown
