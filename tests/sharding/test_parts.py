"""Large tensors are moved in parts: the same bytes, other digests, and everything that reads them back agrees."""

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.small import small_config

import dsv4_shard
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.sharding import recipe as recipes
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sharding.recipe import Slice, part_rows
from dsv4_shard.tensors.geometry import Rectangle

LAYOUTS: dict[str, dict[str, Any]] = {
    "reference": {"engine": "reference", "tp": 2},
    "sglang": {"tp": 2},
    "node": {"engine": "node", "tp": 2, "nodes": 2},
    "cast": {"engine": "reference", "tp": 2, "expert_dtype": "fp8"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 31)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of this size are large already."""
    monkeypatch.setattr(recipes, "PART_ELEMENTS", 5_000)


def rows_of(cut: Slice) -> list[int | None]:
    """Its rows of the source, then None for each row of padding."""
    return [*range(cut.rectangle.row_start, cut.rectangle.row_stop)] + [None] * cut.pad_rows


def weights(folder: Path) -> dict[str, bytes]:
    paths = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_change_no_byte_and_are_verified_merged_and_resharded_as_such(
    layout: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsv4_shard.reshard(model, tmp_path / "whole", **LAYOUTS[layout])
    accounts = dsv4_shard.verify(tmp_path / "whole", against=model).accounts
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "PART_ELEMENTS", 5_000)
        dsv4_shard.reshard(model, tmp_path / "parts", **LAYOUTS[layout])
        runs = [run for entry in load_manifest(tmp_path / "parts").files for run in entry.pieces.values()]
        assert max(sum(count for count, _ in run) for run in runs) > 2, "many are large by this"
        assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
        assert dsv4_shard.verify(tmp_path / "parts").ok
        found = dsv4_shard.verify(tmp_path / "parts", against=model)
        assert found.ok, found.problems
        assert found.accounts == accounts
        dsv4_shard.merge(tmp_path / "parts", tmp_path / "merged")
    dsv4_shard.merge(tmp_path / "whole", tmp_path / "merged of whole")
    assert weights(tmp_path / "merged") == weights(tmp_path / "merged of whole")


@pytest.mark.usefixtures("in_parts")
def test_a_result_of_rank_files_holds_whole_tensors_and_is_compared_with_either(model: Path, tmp_path: Path) -> None:
    dsv4_shard.reshard(model, tmp_path / "two", engine="reference", tp=2)
    dsv4_shard.reshard(tmp_path / "two", tmp_path / "four", engine="reference", tp=4)
    dsv4_shard.reshard(model, tmp_path / "direct", engine="reference", tp=4)
    assert weights(tmp_path / "four") == weights(tmp_path / "direct")
    assert not any(entry.pieces for entry in load_manifest(tmp_path / "four").files)
    assert dsv4_shard.verify(tmp_path / "four", against=tmp_path / "two").ok
    for ranks in ("four", "direct"):
        dsv4_shard.merge(tmp_path / ranks, tmp_path / f"merged {ranks}")
    assert weights(tmp_path / "merged four") == weights(tmp_path / "merged direct")


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_damaged_part_is_found_when_ranks_are_merged(at: float, model: Path, tmp_path: Path) -> None:
    dsv4_shard.reshard(model, tmp_path / "ranks", tp=2)
    file = tmp_path / "ranks" / load_manifest(tmp_path / "ranks").files[0].name
    with file.open("r+b") as opened:
        opened.seek(int(file.stat().st_size * at))
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ 1]))
    assert not dsv4_shard.verify(tmp_path / "ranks").ok
    with pytest.raises(dsv4_shard.errors.BadRanks):
        dsv4_shard.merge(tmp_path / "ranks", tmp_path / "merged")


@given(rows=st.integers(0, 50_000), more=st.integers(0, 300), cols=st.integers(1, 1 << 20))
def test_parts_cover_all_rows_in_whole_stripes_and_are_small(rows: int, more: int, cols: int) -> None:
    parts = part_rows(rows, "BF16", (rows + more, cols))
    assert sum(parts) == rows
    assert 0 not in parts or rows == 0
    assert all(edge % 128 == 0 or edge == rows for edge in accumulate(parts))
    assert max(parts[:-1], default=0) - min(parts[:-1], default=0) <= 128
    assert all(part <= 128 or part * cols <= recipes.PART_ELEMENTS + 128 * cols for part in parts)


@given(rows=st.integers(0, 1 << 20), cols=st.integers(1, 1 << 14))
def test_a_tensor_has_the_same_parts_decoded_as_stored(rows: int, cols: int) -> None:
    assert part_rows(rows, "F8_E4M3", (rows, cols)) == part_rows(rows, "BF16", (rows, cols))
    assert part_rows(rows, "I8", (rows, cols)) == part_rows(rows, "F8_E4M3", (rows, 2 * cols))


@given(start=st.integers(0, 9), rows=st.integers(0, 20), pad=st.integers(0, 9), data=st.data())
def test_parts_of_a_cut_are_its_rows_in_order_then_its_padding(
    start: int, rows: int, pad: int, data: st.DataObject
) -> None:
    cut = Slice(Rectangle(start, start + rows, 3, 7), 2, pad)
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, rows + pad), max_size=4))), rows + pad]
    parts = [cut.part(first, last) for first, last in pairwise(edges)]
    held = [row for part in parts for row in rows_of(part)]
    assert held == rows_of(cut) == [*range(start, start + rows)] + [None] * pad
    assert all((part.rectangle.start, part.rectangle.stop, part.pad_cols) == (3, 7, 2) for part in parts)
