"""The properties of the fuzz targets on a few hundred damaged documents; `make fuzz` tries more of them for longer."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import results
from fuzz.targets import TARGETS

COSTLY = {"config": 100, "plan": 100, "hub": 100, "store": 60, "log": 20}
"""Target → inputs, where one takes more than a few milliseconds."""

FOUND: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a step of a journal with fewer digests than it announces": (
        "journal",
        lambda seed: results._journal([results._entries_of(seed)[0], bytes(range(24))]),
    ),
    "a journal whose sizes are strings": ("journal", lambda seed: _identity(seed, "900")),
    "a parsed header with half of its offsets": ("hub", lambda seed: seed.replace(b"[24, 32]", b"[24]")),
    "a SHA-256 that is a number": ("hub", lambda seed: seed.replace(b'"' + b"d" * 64 + b'"', b"184")),
    "a file whose name is half a character": ("hub", lambda seed: seed.replace(b"config.json", b"\\ud800")),
    "a date that is half a character": ("hub", lambda seed: seed.replace(b"2026-01-01T", b"\\ud800")),
    "a date of 60 kB": ("hub", lambda seed: seed.replace(b"2026-01-01T", b"x" * 60_000)),
}
"""What fuzzing found, each mended: target, and the damage to its first document."""


def _identity(seed: bytes, size: str) -> bytes:
    first, *steps = results._entries_of(seed)
    run = json.loads(first)
    return results._journal([json.dumps(run | {"files": dict.fromkeys(run["files"], size)}).encode(), *steps])


@pytest.mark.parametrize("name", TARGETS)
def test_valid_documents_pass(name: str) -> None:
    for data in TARGETS[name].seeds():
        TARGETS[name].check(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_documents_are_refused_or_hold(name: str) -> None:
    target = TARGETS[name]

    @given(st.integers(0, 2**32), st.sampled_from(target.seeds()))
    @settings(max_examples=COSTLY.get(name, 300), suppress_health_check=list(HealthCheck))
    def hold(seed: int, damaged: bytes) -> None:
        random = Random(seed)
        for _ in range(random.randint(1, 3)):
            damaged = target.mutate(damaged, random)
        target.check(damaged)

    hold()


@pytest.mark.parametrize("case", FOUND)
def test_what_fuzzing_found_holds(case: str) -> None:
    name, damage = FOUND[case]
    seed = TARGETS[name].seeds()[0]
    damaged = damage(seed)
    assert damaged != seed
    TARGETS[name].check(damaged)


@given(st.sampled_from(sorted(TARGETS)), st.binary(max_size=64))
@settings(max_examples=200)
def test_any_bytes_are_refused_or_hold(name: str, data: bytes) -> None:
    TARGETS[name].check(data)


def test_make_fuzz_runs_every_target() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    found = re.search(r"for target in ([\w ]+); do", makefile)
    assert found
    assert found[1].split() == list(TARGETS)
    main = (Path(__file__).parent.parent / "fuzz" / "__main__.py").read_text()
    assert str(tuple(TARGETS)).replace("'", '"') in main
