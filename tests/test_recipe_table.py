"""The layouts of public recipes: what docs/deployments/recipes.md says of each is what the plans say."""

import pytest
from recipe_table import lines, render, table_in_document

from conformance.cases import CASES
from conformance.digests import read_oracle
from conformance.oracles import committed_path

pytestmark = pytest.mark.slow


def test_the_table_in_the_document_is_what_is_planned() -> None:
    assert table_in_document() == render()


def test_every_layout_with_shards_was_compared_with_its_engine() -> None:
    cases = {case.name: case for case in CASES}
    for line in lines():
        if line.has_files:
            for name in line.evidence.replace("`", "").split(", "):
                assert read_oracle(committed_path(cases[name])).count > 0


def test_shards_are_written_for_most_roles() -> None:
    roles = {line.has_files: 0 for line in lines()} | {True: 0, False: 0}
    for line in lines():
        roles[line.has_files] += line.entry["roles"]
    assert sum(roles.values()) == 201
    assert roles[True] >= 180
