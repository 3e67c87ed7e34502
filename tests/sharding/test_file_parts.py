"""Rank files come in parts of a limited size, whose large tensors a loader can read directly."""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.full_size import inventory_of
from support.checkpoints.small import small_config

import dsv4_shard
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import UsageError
from dsv4_shard.models.roles import Part, Role, Stage, TensorName
from dsv4_shard.sharding.file_parts import FileKey, FileParts, place_of
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.tensors import header as headers
from dsv4_shard.tensors.header import PAGE_BYTES, read_header

LAYOUTS: dict[str, dict[str, Any]] = {
    "sglang": {"tp": 2},
    "sglang, experts whole": {"tp": 4, "ep": 4},
    "vllm": {"engine": "vllm", "tp": 2},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(hidden_size=256), 31)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts may be as small as a small checkpoint needs."""
    monkeypatch.setattr("dsv4_shard.planning.request.LEAST_PART", 1)


def tensors_of_rank(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    """Every tensor of a rank, by the library's reader, as an engine's `sharded_state` collects them."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"model-rank-{rank}-part-*.safetensors")):
        for name, tensor in safetensors.torch.load_file(path).items():
            assert name not in found, "a tensor stands in one part"
            found[name] = tensor
    return found


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of weights, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def parts_of_rank(folder: Path, rank: int) -> list[int]:
    """The numbers of a rank's parts."""
    return sorted(int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"model-rank-{rank}-part-*.safetensors"))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_hold_the_tensors_of_one_file_and_stay_below_their_size(layout: str, model: Path, tmp_path: Path) -> None:
    options = LAYOUTS[layout]
    dsv4_shard.reshard(model, tmp_path / "whole", **options)
    dsv4_shard.reshard(model, tmp_path / "parts", part_size="0.2MB", **options)
    for rank in range(options["tp"]):
        whole, parts = tensors_of_rank(tmp_path / "whole", rank), tensors_of_rank(tmp_path / "parts", rank)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name].view(torch.uint8), parts[name].view(torch.uint8)) for name in whole)
        assert parts_of_rank(tmp_path / "whole", rank) == [0, 1]
        numbers = parts_of_rank(tmp_path / "parts", rank)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > 2
    for file in load_manifest(tmp_path / "parts").files:
        assert file.payload <= 200_000 or len(file.tensors) == 1


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_in_parts_are_verified_merged_and_joined_like_others(layout: str, model: Path, tmp_path: Path) -> None:
    options = LAYOUTS[layout] | {"part_size": "0.2MB"}
    dsv4_shard.reshard(model, tmp_path / "parts", **options)
    found = dsv4_shard.verify(tmp_path / "parts", against=model)
    assert found.ok, found.problems
    dsv4_shard.reshard(model, tmp_path / "whole", **LAYOUTS[layout])
    for one in ("whole", "parts"):
        dsv4_shard.merge(tmp_path / one, tmp_path / f"merged of {one}")
    assert weights(tmp_path / "merged of parts") == weights(tmp_path / "merged of whole")
    for ranks in ("0", f"1-{options['tp'] - 1}"):
        dsv4_shard.reshard(model, tmp_path / "joined", ranks=ranks, **options)
    assert weights(tmp_path / "joined") == weights(tmp_path / "parts")


def test_large_tensors_stand_on_pages_in_the_order_of_use(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "LARGE_BYTES", PAGE_BYTES)
    dsv4_shard.reshard(model, tmp_path / "out", tp=2)
    source = LocalSource(tmp_path / "out", "out")
    for path in (tmp_path / "out").glob("*.safetensors"):
        with source.open(path.name) as file:
            header = read_header(file, path.name)
        assert header.data_start % PAGE_BYTES == 0
        large = [name for name, info in header.tensors.items() if info.nbytes >= PAGE_BYTES
                 and info.nbytes % PAGE_BYTES == 0]  # fmt: skip
        assert large == list(header.tensors)[: len(large)]
        assert all((header.data_start + header.tensors[name].start) % PAGE_BYTES == 0 for name in large)
        layers = [int(name.split(".")[2]) for name in large if ".layers." in name]
        assert [layer for layer, _ in groupby(layers)] == sorted(set(layers))


def test_v4_pro_at_tp4_has_no_file_above_twenty_gigabytes(tmp_path: Path) -> None:
    checkpoint, inventory = inventory_of("DeepSeek-V4-Pro")
    plan = dsv4_shard.planning.make_plan(checkpoint, inventory, Request(tp=4, ep=4, gpu="b300"))
    job = dsv4_shard.sharding.job.prepare(checkpoint, inventory, plan)
    assert max(file.payload for file in job.recipe.files) <= 20 * 10**9
    own = [file.name for file in job.recipe.files if file.ranks == (3,) and "/" not in file.name]
    assert own == [f"model-rank-3-part-{part}.safetensors" for part in range(len(own))]


def test_a_part_size_that_is_none_is_refused(model: Path, tmp_path: Path) -> None:
    for part_size in ("lots", "1KB", "0", "0.5MB"):
        with pytest.raises(UsageError, match=r"part_size='.*not a size of files"):
            dsv4_shard.plan(model, tp=2, part_size=part_size)


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 40))
def test_parts_keep_the_order_and_hold_as_much_as_they_may(sizes: list[int], most: int) -> None:
    files = FileParts(most)
    file = FileKey("", 0)
    for target, nbytes in enumerate(sizes):
        files.add(file, target, nbytes)
    files.number()
    parts = [files.file_of(file, target).part for target in range(len(sizes))]
    assert parts == sorted(parts)
    assert sorted(set(parts)) == list(range(files.count(file)))
    filled = [sum(nbytes for nbytes, part in zip(sizes, parts, strict=True) if part == one) for one in set(parts)]
    assert all(nbytes <= most or parts.count(part) == 1 for part, nbytes in enumerate(filled))
    firsts = [sizes[parts.index(part)] for part in sorted(set(parts))]
    assert all(before + first > most for before, first in zip(filled, firsts[1:], strict=False))


def test_a_forward_pass_begins_with_the_embedding_and_ends_with_the_head() -> None:
    names = [TensorName(Role.EMBED, Part.WEIGHT, Stage.MODEL), TensorName(Role.Q_A, Part.WEIGHT, Stage.LAYER, 0),
             TensorName(Role.Q_A, Part.WEIGHT, Stage.LAYER, 10), TensorName(Role.HEAD, Part.WEIGHT, Stage.MODEL),
             TensorName(Role.Q_A, Part.WEIGHT, Stage.MTP, 0)]  # fmt: skip
    assert sorted(names, key=place_of) == names
