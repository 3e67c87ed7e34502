"""Verification finds any byte that is not as written, says where, and accounts for every source tensor."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints.small import (
    contents,
    least_config,
    load_checkpoint,
    open_folder,
    reshard_folder,
    rewrite,
    small_config,
)

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ForeignPlan, NewerSchema, NotAResult, UsageError
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sharding.recipe import Slice, SliceMap
from dsv4_shard.sharding.run import reshard
from dsv4_shard.tensors.header import Header, parse_header
from dsv4_shard.verification.documents import TOLERANCE, Verification
from dsv4_shard.verification.moe_numerics import check_numerics
from dsv4_shard.verification.result_folder import verify
from dsv4_shard.verification.source_accounts import account

RANK_FILES = ("model0-mp2.safetensors", "model1-mp2.safetensors")
COMPANIONS = ("plan.json", "source.zip", "inference_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("least") / "model", least_config(), 31, 0)


@pytest.fixture(scope="module")
def clean(model: Path) -> Path:
    """Its shards for two ranks. Only to be read."""
    reshard_folder(model, model.parent / "clean", 2)
    return model.parent / "clean"


@pytest.fixture
def out(clean: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return shutil.copytree(clean, tmp_path / "out")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with more experts than ten, so that the ranks' headers differ in length. Only to be read."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    return write_checkpoint(folder, small_config(n_routed_experts=16), 32)


def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Change the byte at `offset`."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


@cache
def header_of(path: Path) -> Header:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return parse_header(content[8 : 8 + length], len(content), path.name)


def tensor_at(path: Path, offset: int) -> str | None:
    """The tensor of a rank's file that holds byte `offset`, None in the header."""
    header = header_of(path)
    position = offset - header.data_start
    return next((name for name, info in header.tensors.items() if info.start <= position < info.stop), None)


def boundaries(path: Path) -> list[int]:
    """Offsets at which a part of a rank's file begins or ends: length, header, every tensor."""
    header = header_of(path)
    start = header.data_start
    edges = {0, 7, 8, 9, start - 1}
    for info in header.tensors.values():
        edges |= {start + info.start, start + info.stop - 1}
    return sorted(edges)


def places(found: Verification) -> set[tuple[str, str | None]]:
    return {(problem.file, problem.tensor) for problem in found.problems}


# --- what is as it should be ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
@pytest.mark.parametrize("mp", [1, 2, 4, 8])
def test_a_clean_result_is_clean_alone_and_against_its_source_and_in_numbers(
    mp: int, expert_dtype: str, wide: Path, tmp_path: Path
) -> None:
    reshard_folder(wide, tmp_path / "out", mp, expert_dtype)
    checkpoint, inventory = open_folder(wide)
    alone = verify(tmp_path / "out")
    assert (alone.ok, alone.notes, alone.against, alone.accounts) == (True, (), None, {})
    assert (alone.ranks, alone.world, alone.files) == (tuple(range(mp)), mp, mp)
    against = verify(tmp_path / "out", (checkpoint, inventory))
    assert (against.ok, against.notes, against.against) == (True, (), str(wide))
    assert sum(against.accounts.values()) == len(checkpoint.tensors)
    sums = check_numerics([tmp_path / "out"], checkpoint, inventory)
    assert sums.ok
    assert sums.error_once < TOLERANCE
    assert (sums.ranks, sums.layer, len(sums.experts)) == (mp, 1, 16)
    if mp > 1:
        assert sums.error_on_every_rank > 1e4 * TOLERANCE


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_adds_up_to_the_tensors_bytes(workers: int, clean: Path, model: Path) -> None:
    payload = sum(path.stat().st_size - header_of(path).data_start for path in clean.glob("*.safetensors"))
    for source in (None, open_folder(model)):
        seen: list[int] = []
        assert verify(clean, source, workers=workers, on_progress=seen.append).ok
        assert sum(seen) == payload


def test_accounts_say_what_became_of_each_tensor(model: Path, clean: Path) -> None:
    found = verify(clean, open_folder(model))
    tensors = load_checkpoint(model)
    experts = [name for name in tensors if ".experts." in name]
    cut = ("embed.", "head.", ".wq_b.", ".wo_b.", ".wo_a.weight", ".attn_sink")
    split = [name for name in tensors if any(part in name for part in cut)]
    assert found.accounts == {
        "whole on one rank, their expert's": len(experts),
        "split over the ranks": len(split),
        "left out": 1,
        "whole on every rank": len(tensors) - len(experts) - len(split) - 1,
    }
    assert found.left_out == {"multiplied into wo_a.weight, which is stored in BF16": 1}


def one_row_up(cut: Slice) -> Slice:
    area = cut.rectangle
    return cut._replace(rectangle=area._replace(row_start=area.row_start - 1, row_stop=area.row_stop - 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda spread: ((spread[0][0], spread[0][1][1:]), *spread[1:]),
        lambda spread: spread[1:],
        lambda spread: (spread[0], *((one_row_up(cut), files) for cut, files in spread[1:])),
    ],
    ids=["a rank lacks its part", "a part is on no rank", "parts overlap"],
)
def test_a_tensor_that_is_not_split_evenly_is_unaccounted_for(
    change: Callable[[SliceMap], SliceMap], wide: Path
) -> None:
    """Attention is split over TP 2, of which there are two replicas."""
    checkpoint, inventory = open_folder(wide)
    job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, Request(4, dp=2, engine="sglang")))
    manifest: Any = SimpleNamespace(ranks=job.ranks, world=job.world, identity=job.identity)
    number, step = next((n, s) for n, s in enumerate(job.recipe.steps) if s.source.name == "layers.0.attn.wq_b.weight")
    (landing,) = step.landings
    assert [len(files) for _, files in landing.spread] == [2, 2]
    assert account(job.recipe, inventory, manifest)[1] == []
    steps = list(job.recipe.steps)
    steps[number] = replace(step, landings=(landing._replace(spread=change(landing.spread)),))
    (problem,) = account(replace(job.recipe, steps=tuple(steps)), inventory, manifest)[1]
    assert (problem.kind, problem.tensor) == ("unaccounted", step.source.name)


def test_left_out_tensors_are_accounted_for(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    mtp = write_checkpoint(tmp_path / "mtp", least_config(num_nextn_predict_layers=1, compress_ratios=[0, 0]), 33)
    tensors = load_checkpoint(mtp)
    tensors |= {n: tensors["embed.weight"].clone() for n in ("mtp.0.emb.tok_emb.weight", "mtp.0.head.weight")}
    rewrite(folder, tensors)
    for expert_dtype in ("fp4", "fp8"):
        reshard_folder(folder, tmp_path / expert_dtype, 2, expert_dtype)
        found = verify(tmp_path / expert_dtype, open_folder(folder))
        assert found.ok
        assert found.accounts["left out"] == sum(found.left_out.values())
        assert found.left_out["the MTP block shares the model's embedding and head"] == 2
        assert sum(found.accounts.values()) == len(tensors)


@pytest.mark.parametrize("ranks", [(0, 1), (3,), (1, 2, 3)])
@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
def test_some_ranks_verify_and_numerics_refuses_them(
    expert_dtype: str, ranks: tuple[int, ...], wide: Path, tmp_path: Path
) -> None:
    reshard_folder(wide, tmp_path / "out", 4, expert_dtype, ranks=ranks)
    checkpoint, inventory = open_folder(wide)
    assert verify(tmp_path / "out").ok
    found = verify(tmp_path / "out", (checkpoint, inventory))
    assert found.ok
    assert (found.ranks, found.world) == (ranks, 4)
    assert sum(found.accounts.values()) == len(checkpoint.tensors)
    elsewhere = sum(int(name.split(".experts.")[1].split(".")[0]) // 4 not in ranks
                    for name in checkpoint.tensors if ".experts." in name)  # fmt: skip
    assert found.accounts["only on ranks that are not here"] == elsewhere
    with pytest.raises(UsageError, match=rf"out: holds {len(ranks)} of 4 ranks"):
        check_numerics([tmp_path / "out"], checkpoint, inventory)


def test_an_extra_file_is_a_note(out: Path, model: Path) -> None:
    (out / "README.txt").write_text("mine")
    (out / "folder").mkdir()
    for source in (None, open_folder(model)):
        found = verify(out, source)
        assert found.ok
        assert found.notes == ("README.txt is not part of the result", "folder is not part of the result")


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", RANK_FILES)
def test_a_flip_at_any_boundary_is_found_where_it_is(name: str, clean: Path, out: Path) -> None:
    for offset in boundaries(clean / name):
        flip(out / name, offset)
        found = verify(out)
        assert places(found) == {(name, tensor_at(clean / name, offset))}, offset
        flip(out / name, offset)
    assert verify(out).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", RANK_FILES)
def test_a_flip_at_any_boundary_is_found_against_the_source(name: str, clean: Path, out: Path, model: Path) -> None:
    source = open_folder(model)
    for offset in boundaries(clean / name)[::3]:
        flip(out / name, offset)
        found = verify(out, source)
        tensor = tensor_at(clean / name, offset)
        assert places(found) == {(name, tensor)}, offset
        if tensor is not None:
            assert [problem.kind for problem in found.problems] == ["differs-from-source"]
            assert f"byte {offset:,} " in found.problems[0].message
        flip(out / name, offset)
    assert verify(out, source).ok


@pytest.mark.slow
@settings(max_examples=150)
@given(data=st.data())
def test_any_flip_in_a_rank_file_is_found_where_it_is(data: st.DataObject, clean: Path) -> None:
    scratch = shared_copy(clean)
    name = data.draw(st.sampled_from(RANK_FILES))
    header = header_of(clean / name).data_start
    size = (clean / name).stat().st_size
    offset = data.draw(st.one_of(st.integers(0, 7), st.integers(8, header - 1), st.integers(header, size - 1)))
    mask = data.draw(st.integers(1, 255))
    flip(scratch / name, offset, mask)
    try:
        found = verify(scratch, workers=1)
    finally:
        flip(scratch / name, offset, mask)
    assert places(found) == {(name, tensor_at(clean / name, offset))}
    assert {problem.kind for problem in found.problems} == {"wrong-header" if offset < header else "damaged-tensor"}


def shared_copy(clean: Path) -> Path:
    """One copy for all examples of a test, which leave it as it was."""
    scratch = clean.parent / "scratch"
    return scratch if scratch.exists() else shutil.copytree(clean, scratch)


@pytest.mark.parametrize("name", COMPANIONS)
def test_any_flip_in_a_small_file_is_found(name: str, out: Path) -> None:
    size = (out / name).stat().st_size
    for offset in sorted({0, 1, size // 3, size // 2, size - 2, size - 1}):
        for mask in (1, 0x20, 0x80):
            flip(out / name, offset, mask)
            found = verify(out)
            assert places(found) == {(name, None)}
            assert found.problems[0].kind == "damaged-file"
            flip(out / name, offset, mask)


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_flip_in_a_small_file_is_reported_against_the_source_too(name: str, out: Path, model: Path) -> None:
    for offset in (0, (out / name).stat().st_size // 2):
        flip(out / name, offset)
        assert (name, None) in places(verify(out, open_folder(model)))
        flip(out / name, offset)


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_lost_small_file_is_reported_alone_and_against_the_source(name: str, out: Path, model: Path) -> None:
    (out / name).unlink()
    for source in (None, open_folder(model)):
        found = verify(out, source)
        assert [(p.kind, p.file) for p in found.problems] == [("lost-file", name)]


@pytest.mark.parametrize("request_", [Request(2, engine="sglang"), Request(2, engine="node", nodes=2)])
def test_a_damaged_copy_of_a_shared_file_is_named(request_: Request, wide: Path, tmp_path: Path) -> None:
    """File systems without links have a copy of the file for each rank."""
    out, source = tmp_path / "out", open_folder(wide)
    reshard(prepare(*source, make_plan(*source, request_)), source[0], out)
    entry = next(file for file in load_manifest(out).files if file.links)
    link = entry.links[-1]
    (out / link).unlink()
    shutil.copyfile(out / entry.name, out / link)
    assert verify(out).ok
    for offset in (0, entry.nbytes // 2, entry.nbytes - 1):
        flip(out / link, offset)
        found = verify(out)
        assert [(p.kind, p.file) for p in found.problems] == [("damaged-file", link)]
        flip(out / link, offset)
    os.truncate(out / link, entry.nbytes - 1)
    assert [(p.kind, p.file) for p in verify(out).problems] == [("damaged-file", link)]


@pytest.mark.slow
@settings(max_examples=200)
@given(data=st.data())
def test_any_flip_in_the_manifest_makes_it_no_result(data: st.DataObject, clean: Path) -> None:
    scratch = shared_copy(clean)
    path = scratch / "manifest.json"
    size = path.stat().st_size
    offset = data.draw(st.one_of(st.sampled_from([0, 1, size - 2, size - 1]), st.integers(0, size - 1)))
    mask = data.draw(st.integers(1, 255))
    flip(path, offset, mask)
    try:
        # NewerSchema: the blank before the number of the schema became a digit.
        with pytest.raises((NotAResult, NewerSchema), match=r"manifest\.json"):
            verify(scratch)
    finally:
        flip(path, offset, mask)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b"{" * 100_000])
def test_a_manifest_that_is_none_is_no_result(content: bytes, out: Path) -> None:
    (out / "manifest.json").write_bytes(content)
    with pytest.raises(NotAResult, match="damaged") as caught:
        verify(out)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("change", [
    lambda raw: raw.replace(b" ", b"\t", 1), lambda raw: raw + b"\n", lambda raw: raw.rstrip(),
    lambda raw: b" " + raw, lambda raw: raw[: len(raw) // 2], lambda raw: json.dumps(json.loads(raw)).encode(),
])  # fmt: skip
def test_a_manifest_in_other_bytes_is_no_result(change: Callable[[bytes], bytes], out: Path) -> None:
    path = out / "manifest.json"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(NotAResult, match="damaged"):
        verify(out)


def test_a_folder_without_a_manifest_is_no_result(out: Path, model: Path, tmp_path: Path) -> None:
    (out / "manifest.json").unlink()
    for folder in (out, model):
        with pytest.raises(NotAResult, match=folder.name):
            verify(folder)
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        verify(tmp_path / "nowhere")


@pytest.mark.parametrize("against", [False, True])
@pytest.mark.parametrize("name", RANK_FILES)
def test_a_lost_file_is_named_with_its_rank(name: str, against: bool, out: Path, model: Path) -> None:
    (out / name).unlink()
    found = verify(out, open_folder(model) if against else None)
    assert [(p.kind, p.file, p.tensor) for p in found.problems] == [("lost-file", name, None)]
    assert f"rank {name[5]}" in found.problems[0].message


@pytest.mark.parametrize("against", [False, True])
@pytest.mark.parametrize("keep", [
    lambda size, header: 0, lambda size, header: 7, lambda size, header: header - 1, lambda size, header: header,
    lambda size, header: size // 2, lambda size, header: size - 1,
])  # fmt: skip
def test_a_truncated_file_is_named_with_both_sizes(
    keep: Callable[[int, int], int], against: bool, clean: Path, out: Path, model: Path
) -> None:
    name = RANK_FILES[1]
    size = (out / name).stat().st_size
    left = keep(size, header_of(clean / name).data_start)
    with (out / name).open("r+b") as file:
        file.truncate(left)
    found = verify(out, open_folder(model) if against else None)
    assert {problem.file for problem in found.problems} == {name}
    assert found.problems[0].kind == "wrong-size"
    assert f"{left:,} bytes, {size:,} were written" in found.problems[0].message


@pytest.mark.parametrize("against", [False, True])
def test_a_grown_file_is_named_with_both_sizes(against: bool, out: Path, model: Path) -> None:
    name = RANK_FILES[0]
    with (out / name).open("ab") as file:
        file.write(b"\0")
    found = verify(out, open_folder(model) if against else None)
    assert [(p.kind, p.file) for p in found.problems] == [("wrong-size", name)]


def swap(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "aside")
    (folder / other).rename(folder / one)
    (folder / "aside").rename(folder / other)


@pytest.mark.parametrize("against", [False, True])
def test_swapped_rank_files_are_named_as_swapped(against: bool, out: Path, model: Path) -> None:
    swap(out, *RANK_FILES)
    found = verify(out, open_folder(model) if against else None)
    swapped = {problem.file: problem.message for problem in found.problems if "swapped" in problem.message}
    assert swapped.keys() == set(RANK_FILES)
    assert "holds the shards of rank 1" in swapped[RANK_FILES[0]]
    assert "holds the shards of rank 0" in swapped[RANK_FILES[1]]


def test_swapped_rank_files_of_other_sizes_are_named_as_swapped(wide: Path, tmp_path: Path) -> None:
    reshard_folder(wide, tmp_path / "out", 4)
    first, last = "model0-mp4.safetensors", "model3-mp4.safetensors"
    assert (tmp_path / "out" / first).stat().st_size != (tmp_path / "out" / last).stat().st_size
    swap(tmp_path / "out", first, last)
    found = verify(tmp_path / "out")
    assert {problem.file for problem in found.problems if "swapped" in problem.message} == {first, last}


@pytest.mark.parametrize("against", [False, True])
def test_another_ranks_bytes_under_a_ranks_own_header_are_found(against: bool, wide: Path, tmp_path: Path) -> None:
    reshard_folder(wide, tmp_path / "out", 4)
    names = ["model2-mp4.safetensors", "model1-mp4.safetensors"]
    whole = [(tmp_path / "out" / name).read_bytes() for name in names]
    starts = [int.from_bytes(content[:8], "little") + 8 for content in whole]
    for own, other in ((0, 1), (1, 0)):
        content = whole[own][: starts[own]] + whole[other][starts[other] :]
        assert len(content) == len(whole[own])
        (tmp_path / "out" / names[own]).write_bytes(content)
    found = verify(tmp_path / "out", open_folder(wide) if against else None)
    assert {problem.file for problem in found.problems} == set(names)
    if not against:
        assert {problem.kind for problem in found.problems} == {"wrong-content"}
        assert all("another rank's file?" in problem.message for problem in found.problems)


def test_two_swapped_tensors_of_one_file_are_both_named(clean: Path, out: Path) -> None:
    name = RANK_FILES[0]
    header = header_of(clean / name)
    a, b = "layers.0.ffn.experts.0.w1.weight", "layers.0.ffn.experts.0.w3.weight"
    content = bytearray((out / name).read_bytes())
    spans = [slice(header.data_start + header.tensors[t].start, header.data_start + header.tensors[t].stop)
             for t in (a, b)]  # fmt: skip
    content[spans[0]], content[spans[1]] = content[spans[1]], content[spans[0]]
    (out / name).write_bytes(content)
    assert places(verify(out)) == {(name, a), (name, b)}


def test_several_damages_are_all_found(clean: Path, out: Path, model: Path) -> None:
    expected: set[tuple[str, str | None]] = {("tokenizer.json", None)}
    flip(out / "tokenizer.json", 3)
    for name in RANK_FILES:
        for offset in boundaries(clean / name)[6::20]:
            flip(out / name, offset)
            expected.add((name, tensor_at(clean / name, offset)))
    assert len(expected) > 6
    for source in (None, open_folder(model)):
        assert places(verify(out, source)) == expected


# --- against the wrong source --------------------------------------------------------------------------------------


def test_a_checkpoint_with_other_weights_differs_by_tensor(clean: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", least_config(), 99, 0)
    found = verify(clean, open_folder(other))
    assert not found.ok
    assert {problem.kind for problem in found.problems} == {"differs-from-source"}
    names = {problem.tensor for problem in found.problems}
    mine, theirs = load_checkpoint(clean.parent / "model"), load_checkpoint(other)
    same = {name for name in mine if mine[name].view(-1).tolist() == theirs[name].view(-1).tolist()}
    assert "layers.0.ffn.experts.0.w1.weight" in names
    assert not names & same
    assert len(names) > 30


@pytest.mark.parametrize("change", [
    {"hidden_size": 256}, {"n_routed_experts": 4}, {"routed_scaling_factor": 1.0}, {"num_hidden_layers": 2,
    "compress_ratios": [0, 0]},
])  # fmt: skip
def test_a_checkpoint_of_another_make_is_foreign(change: dict[str, object], clean: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", least_config(**change), 31, 0)
    with pytest.raises(ForeignPlan):
        verify(clean, open_folder(other))


@pytest.mark.parametrize(("tensor", "ranks"), [
    ("embed.weight", {0}),
    ("layers.0.attn.wq_a.weight", {0, 1}),
    ("layers.0.attn.wo_b.scale", {0}),
    ("layers.0.attn.wo_a.weight", {0}),
    ("layers.0.ffn.experts.1.w2.weight", {1}),
    ("layers.0.ffn.experts.0.w2.scale", {0}),
])  # fmt: skip
def test_a_byte_that_changed_in_the_source_is_found_on_the_ranks_that_hold_it(
    tensor: str, ranks: set[int], clean: Path, model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    placed = open_folder(folder)[0].tensors[tensor]
    flip(folder / placed.file, placed.start)
    found = verify(clean, open_folder(folder))
    assert places(found) == {(RANK_FILES[rank], tensor) for rank in ranks}


def test_a_changed_scale_shows_in_the_weight_that_it_is_multiplied_into(
    clean: Path, model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    placed = open_folder(folder)[0].tensors["layers.0.attn.wo_a.scale"]
    flip(folder / placed.file, placed.stop - 1)
    found = verify(clean, open_folder(folder))
    assert places(found) == {(RANK_FILES[1], "layers.0.attn.wo_a.weight")}


@pytest.mark.parametrize("part", ["weight", "scale"])
def test_a_changed_expert_shows_in_its_cast(part: str, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    reshard_folder(folder, tmp_path / "out", 2, "fp8")
    name = "layers.0.ffn.experts.1.w1"
    placed = open_folder(folder)[0].tensors[f"{name}.{part}"]
    flip(folder / placed.file, placed.start, 0x03)
    found = verify(tmp_path / "out", open_folder(folder))
    assert {problem.file for problem in found.problems} == {RANK_FILES[1]}
    assert {problem.tensor for problem in found.problems} <= {f"{name}.weight", f"{name}.scale"}
    assert not found.ok


def test_verifying_changes_nothing(out: Path, model: Path) -> None:
    before = contents(out)
    verify(out, open_folder(model))
    assert contents(out) == before


# --- numerics ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1])
def test_numerics_looks_at_the_layer_asked_for(layer: int, wide: Path, tmp_path: Path) -> None:
    reshard_folder(wide, tmp_path / "out", 2)
    assert check_numerics([tmp_path / "out"], *open_folder(wide), layer).layer == layer


@pytest.mark.parametrize("layer", [-1, 1, 61])
def test_numerics_of_a_layer_that_is_not_there_is_refused(layer: int, clean: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="the model has layers 0 to 0"):
        check_numerics([clean], *open_folder(model), layer)


@pytest.mark.slow
@pytest.mark.parametrize("tensor", ["experts.0.w1.scale", "experts.1.w2.weight", "shared_experts.w3.weight"])
def test_numerics_sees_a_wrong_expert(tensor: str, clean: Path, out: Path, model: Path) -> None:
    for name in RANK_FILES:
        header = header_of(clean / name)
        info = header.tensors.get(f"layers.0.ffn.{tensor}")
        for offset in range(0, info.nbytes, 7) if info else ():
            flip(out / name, header.data_start + info.start + offset, 2)
    sums = check_numerics([out], *open_folder(model))
    assert not sums.ok


@pytest.mark.slow
def test_numerics_is_the_same_each_time(clean: Path, model: Path) -> None:
    assert check_numerics([clean], *open_folder(model)) == check_numerics([clean], *open_folder(model))


def test_a_verification_is_a_json_document(out: Path, model: Path) -> None:
    flip(out / RANK_FILES[0], 4000)
    found = verify(out, open_folder(model))
    document = json.loads(json.dumps(found.model_dump(mode="json")))
    assert document.pop("ok") is False
    assert Verification.model_validate(document) == found


def test_a_shared_expert_of_one_block_that_is_padded_is_accounted_for(tmp_path: Path) -> None:
    """Rank 0 has its only block, rank 1 padding alone."""
    config = least_config(hidden_size=512, moe_intermediate_size=128, n_routed_experts=4, vocab_size=64)
    model = write_checkpoint(tmp_path / "model", config, 3, 0)
    checkpoint, inventory = open_folder(model)
    plan = make_plan(checkpoint, inventory, Request(2, engine="vllm"))
    assert plan.deployment.shared == "pad"
    reshard(prepare(checkpoint, inventory, plan), checkpoint, tmp_path / "out")
    assert verify(tmp_path / "out", open_folder(model)).problems == ()
