"""The properties of the fuzz targets on a few hundred damaged documents; `make fuzz` tries more of them for longer."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_valid_documents_pass(name: str) -> None:
    for data in TARGETS[name].seeds():
        TARGETS[name].check(data)


def hold(name: str, data: DataObject) -> None:
    """Damage one of the target's documents, again and again, and check it."""
    target = TARGETS[name]
    random = Random(data.draw(st.integers(0, 2**32)))
    damaged = data.draw(st.sampled_from(target.seeds()))
    for _ in range(random.randint(1, 3)):
        damaged = target.mutate(damaged, random)
    target.check(damaged)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300)
def test_a_damaged_header_is_refused_or_read_as_the_library_reads_it(data: DataObject) -> None:
    hold("header", data)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300)
def test_a_damaged_index_is_refused_or_puts_each_tensor_where_it_is(data: DataObject) -> None:
    hold("index", data)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=100)
def test_a_damaged_config_is_refused_or_judged_against_the_tensors(data: DataObject) -> None:
    hold("config", data)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=100)
def test_a_damaged_plan_is_refused_or_the_plan_that_the_rules_give(data: DataObject) -> None:
    hold("plan", data)


@given(st.sampled_from(sorted(TARGETS)), st.binary(max_size=64))
@settings(max_examples=200)
def test_any_bytes_are_refused_or_hold(name: str, data: bytes) -> None:
    TARGETS[name].check(data)
