"""Every checkpoint of the family, there and back: what docs/families.md says of it is what happens."""

from pathlib import Path

import pytest
from family_table import (
    CASES,
    checkpoint_of,
    pairs_in_document,
    render,
    request_for,
    table_in_document,
    written,
)
from support.checkpoints.small import load_tensors, open_folder, raw

from dsv4_shard.opening import open_source
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reassembly.rank_folder import open_ranks
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard

pytestmark = pytest.mark.slow

TITLES = {case.title: case for case in CASES}


WRITTEN = pairs_in_document()


def test_the_table_in_the_document_is_what_happens() -> None:
    assert table_in_document() == render()


@pytest.mark.parametrize(("title", "layout"), WRITTEN)
def test_as_much_comes_back_from_any_number_of_ranks(title: str, layout: str) -> None:
    """Reshard, then merge: what the layout keeps is the source's, whole files where all is kept."""
    at_two = written(TITLES[title], layout)
    for tp in (1, 4, 8):
        found = written(TITLES[title], layout, tp)
        assert found == at_two or found.startswith("no: "), tp


@pytest.mark.parametrize(("title", "layout"), [(t, layout) for t, layout in WRITTEN if (t, "reference") in WRITTEN])
def test_ranks_are_resharded_as_their_checkpoint_is(title: str, layout: str, tmp_path: Path) -> None:
    """From two ranks of a layout to four of the reference, without the checkpoint between them on disk."""
    checkpoint, inventory = open_folder(checkpoint_of(TITLES[title]))
    target = request_for("reference", 4)
    two = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, request_for(layout)))
    direct = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, target))
    reshard(two, checkpoint, tmp_path / "two")
    reshard(direct, checkpoint, tmp_path / "direct")
    held, found = open_ranks(open_source(str(tmp_path / "two")))  # type: ignore[arg-type]
    has_no_draft = "no draft" in written(TITLES[title], layout)
    reshard(prepare(held, found, make_plan(held, found, target)), held, tmp_path / "four")
    for rank in range(4):
        file = f"model{rank}-mp4.safetensors"
        due, made = (load_tensors(tmp_path / name / file) for name in ("direct", "four"))
        lost = {name for name in due if name.startswith("mtp.") and has_no_draft}
        assert due.keys() - made.keys() == lost
        assert {name: raw(tensor) for name, tensor in made.items()} == {name: raw(due[name]) for name in made}
        assert lost or (tmp_path / "four" / file).read_bytes() == (tmp_path / "direct" / file).read_bytes()
