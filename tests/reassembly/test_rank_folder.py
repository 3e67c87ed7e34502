"""A folder of ranks that do not make up a checkpoint is refused, with what is missing or where they differ."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from support.checkpoints.small import contents, load_checkpoint, load_tensors, open_folder, raw, small_config
from support.merging import held_by, merge, opened, shard, weights
from typer.testing import CliRunner

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import (
    BadConfig,
    BadPadding,
    BadRanks,
    BadSkeleton,
    DamagedRanks,
    ExitCode,
    MissingRanks,
    MixedRanks,
    NotConverted,
    RanksDisagree,
    SourceChanged,
    WrongRankHeader,
)
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reassembly.merge_job import prepare_merge
from dsv4_shard.reassembly.rank_folder import open_ranks
from dsv4_shard.sharding import journal
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.manifest import Manifest, load_manifest
from dsv4_shard.sharding.run import reshard
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE
from dsv4_shard.sources.local import LocalFile, LocalSource
from dsv4_shard.tensors.header import read_header

NORM = "layers.1.attn_norm.weight"
"""Whole on every rank."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(hidden_size=256), 61)


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its ranks in some layouts, a folder each. Only to be read."""
    folder = tmp_path_factory.mktemp("results")
    shard(model, folder / "reference", Request(tp=4, engine="reference"))
    shard(model, folder / "sglang", Request(tp=2, engine="sglang"))
    shard(model, folder / "vllm", Request(tp=8, engine="vllm"))
    shard(model, folder / "node", Request(tp=4, nodes=2, engine="node"))
    return folder


@pytest.fixture
def ranks(results: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the ranks in a layout, to be damaged; what was one file under several names is several."""
    return lambda layout: shutil.copytree(results / layout, tmp_path / layout)


@pytest.fixture
def converted(results: Path, tmp_path: Path, model: Path) -> Path:
    """What DeepSeek's converter would have written (its files are these, byte by byte), and a config.json."""
    folder = tmp_path / "converted"
    folder.mkdir()
    for path in (results / "reference").glob("model*"):
        shutil.copy(path, folder)
    shutil.copy(model / CONFIG_FILE, folder)
    return folder


def place(path: Path, tensor: str) -> int:
    """Where a tensor begins in its file."""
    file = LocalFile(path, path.name)
    try:
        header = read_header(file, path.name)
    finally:
        file.close()
    return header.data_start + header.tensors[tensor].start


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    """Change one byte."""
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))


def reseal(folder: Path, **changes: Any) -> None:
    """Let the manifest say something else, as whoever means harm would."""
    document = load_manifest(folder).model_dump(mode="json") | changes
    sealed = Manifest.model_validate_json(json.dumps(document)).sealed()
    (folder / "manifest.json").write_bytes(sealed.to_bytes())


def attempt(folder: Path) -> None:
    """Merge; nothing may stand under the output's name after an error."""
    out = folder.with_name("merged")
    try:
        merge(folder, out)
    finally:
        assert not out.exists()


# --- ranks that are missing, or too many ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "gone", "said"),
    [
        ("reference", ["model1-mp4.safetensors", "model3-mp4.safetensors"], "2 files .* of ranks 1, 3$"),
        ("sglang", ["draft/model-rank-1-part-0.safetensors"], r"draft/model-rank-1-part-0.safetensors.* of rank 1$"),
        ("node", ["node-1/model-00002-of-00005.safetensors"], "of rank 1$"),
    ],
)
def test_files_that_are_gone_are_named_with_their_ranks(
    layout: str, gone: list[str], said: str, ranks: Callable[[str], Path]
) -> None:
    folder = ranks(layout)
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(MissingRanks, match=said):
        attempt(folder)


def test_a_result_of_some_ranks_says_which_are_missing(model: Path, tmp_path: Path) -> None:
    checkpoint, inventory = open_folder(model)
    plan = make_plan(checkpoint, inventory, Request(tp=8, engine="reference"))
    reshard(prepare(checkpoint, inventory, plan, (0, 1, 5)), checkpoint, tmp_path / "some")
    with pytest.raises(MissingRanks, match=r"3 of 8 ranks; missing: 2-4, 6-7$"):
        attempt(tmp_path / "some")


def test_a_rank_that_the_converters_folder_lacks_is_named(converted: Path) -> None:
    (converted / "model2-mp4.safetensors").unlink()
    with pytest.raises(MissingRanks, match="3 files of 4 ranks; rank 2 is missing"):
        attempt(converted)


def test_a_rank_beyond_the_last_is_named(converted: Path) -> None:
    shutil.copy(converted / "model0-mp4.safetensors", converted / "model4-mp4.safetensors")
    with pytest.raises(MissingRanks, match="5 files of 4 ranks; rank 4 is one too many"):
        attempt(converted)


def test_files_of_two_sets_of_ranks_are_not_mixed(converted: Path) -> None:
    shutil.copy(converted / "model0-mp4.safetensors", converted / "model0-mp8.safetensors")
    with pytest.raises(MixedRanks, match="mp4, mp8"):
        attempt(converted)


# --- ranks that contradict -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["reference", "converted"])
def test_a_replica_that_differs_by_one_byte_is_named_with_its_place(
    source: str, ranks: Callable[[str], Path], converted: Path
) -> None:
    folder = converted if source == "converted" else ranks(source)
    path = folder / "model2-mp4.safetensors"
    here, there = place(path, NORM) + 5, place(folder / "model0-mp4.safetensors", NORM) + 5
    flip(path, here)
    said = f"{NORM}: model0-mp4.safetensors and model2-mp4.safetensors .* at bytes {there:,} and {here:,}"
    with pytest.raises(RanksDisagree, match=said):
        attempt(folder)


def test_copies_of_a_file_that_all_ranks_share_are_compared(ranks: Callable[[str], Path], model: Path) -> None:
    folder = ranks("sglang")
    paths = [folder / f"model-rank-{rank}-part-1.safetensors" for rank in (0, 1)]
    assert not paths[0].samefile(paths[1])
    held = held_by(load_checkpoint(model), decoded=True, cast=False)
    merge(folder, folder.with_name("sound"))
    assert {n: raw(t) for n, t in load_checkpoint(folder.with_name("sound")).items()} == {
        name: raw(tensor) for name, tensor in held.items()
    }
    flip(paths[1], paths[1].stat().st_size - 1)
    with pytest.raises(RanksDisagree, match=r"model-rank-0-part-1.* and model-rank-1-part-1"):
        attempt(folder)


@pytest.mark.parametrize("layout", ["reference", "sglang", "vllm", "node"])
def test_a_byte_that_one_rank_alone_has_must_match_the_manifest(layout: str, ranks: Callable[[str], Path]) -> None:
    folder = ranks(layout)
    path = next(iter(sorted(folder.glob("node-1/*00002*")))) if layout == "node" else folder / _own(layout)
    with safe_open(path, "pt") as reader:
        expert = next(name for name in sorted(reader.keys()) if ".experts." in name and name.endswith("weight"))
    flip(path, place(path, expert) + 1)
    with pytest.raises(DamagedRanks, match=f"{re.escape(expert)}: its bytes differ from what was written"):
        attempt(folder)


def _own(layout: str) -> str:
    return "model1-mp4.safetensors" if layout == "reference" else "model-rank-1-part-0.safetensors"


def test_files_that_changed_places_are_named(ranks: Callable[[str], Path]) -> None:
    folder = ranks("reference")
    shutil.copy(folder / "model0-mp4.safetensors", folder / "model3-mp4.safetensors")
    with pytest.raises(WrongRankHeader, match=r"model3-mp4.*not the file of rank 3: it has layers.0.ffn.experts.0"):
        attempt(folder)


@pytest.mark.parametrize("change", ["dtype", "lost", "metadata"])
def test_a_rank_file_with_another_header_says_how_it_differs(change: str, converted: Path) -> None:
    path = converted / "model1-mp4.safetensors"
    tensors, metadata = load_tensors(path), {"made": "elsewhere"} if change == "metadata" else None
    if change == "dtype":
        tensors[NORM] = tensors[NORM].half()
    if change == "lost":
        del tensors[NORM]
    save_file(tensors, path, metadata=metadata)
    said = {
        "dtype": f"{NORM} is F16 .*, due is BF16",
        "lost": f"it lacks {NORM}",
        "metadata": "other metadata",
    }[change]
    with pytest.raises(WrongRankHeader, match=f"not the file of rank 1: .*{said}"):
        attempt(converted)


def test_a_file_that_no_longer_is_safetensors_is_named(ranks: Callable[[str], Path]) -> None:
    folder = ranks("reference")
    (folder / "model1-mp4.safetensors").write_bytes(b"nothing")
    with pytest.raises(WrongRankHeader, match=r"rank 1: .*too short"):
        attempt(folder)


def test_padding_that_is_no_padding_is_found(ranks: Callable[[str], Path]) -> None:
    folder = ranks("vllm")
    path = folder / "model-rank-7-part-0.safetensors"
    tensor = "model.layers.0.ffn.experts._shared_experts._layer.down_proj.weight"
    overwrite(path, place(path, tensor), b"\x01")
    with pytest.raises(BadPadding, match=f"model-rank-7-part-0.safetensors: {re.escape(tensor)}"):
        attempt(folder)


def test_a_scale_that_is_no_power_of_two_is_found(ranks: Callable[[str], Path]) -> None:
    folder = ranks("sglang")
    path, tensor = folder / "model-rank-1-part-0.safetensors", "model.layers.1.self_attn.wq_b.weight_scale_inv"
    overwrite(path, place(path, tensor) + 4, b"\x00\x00\xc0\x3f")
    with pytest.raises(NotConverted, match="F32 0x3fc00000 is no value of F8_E8M0"):
        attempt(folder)


@pytest.mark.slow
def test_repeats_of_a_scale_that_differ_are_found(tmp_path: Path) -> None:
    config = small_config(hidden_size=256, expert_dtype="fp8", moe_intermediate_size=384)
    model = write_checkpoint(tmp_path / "model", config, 62)
    shard(model, tmp_path / "ranks", Request(tp=2, engine="vllm", runner="triton"))
    merge(tmp_path / "ranks", tmp_path / "sound")
    assert weights(tmp_path / "sound") == weights(model)
    path = tmp_path / "ranks" / "model-rank-1-part-0.safetensors"
    tensor = "model.layers.1.ffn.experts.routed_experts.w2_weight_scale_inv"
    scale = path.read_bytes()[place(path, tensor) :][:1]
    overwrite(path, place(path, tensor), bytes([scale[0] ^ 1]))
    with pytest.raises((RanksDisagree, NotConverted), match=tensor):
        attempt(tmp_path / "ranks")


def test_a_constant_of_the_engine_that_is_another_is_found(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", small_config(hidden_size=256, expert_dtype="fp8"), 63)
    shard(model, tmp_path / "ranks", Request(tp=2, engine="sglang"))
    path, tensor = tmp_path / "ranks/model-rank-0-part-1.safetensors", "model.layers.0.self_attn.attn_mqa.k_scale"
    overwrite(path, place(path, tensor), b"\x00\x00\x00\x40")
    with pytest.raises(DamagedRanks, match=re.escape(tensor)):
        attempt(tmp_path / "ranks")


def test_a_rank_file_that_is_written_to_meanwhile_ends_the_run(ranks: Callable[[str], Path]) -> None:
    folder = ranks("reference")
    checkpoint, inventory = opened(folder)
    job = prepare_merge(checkpoint, inventory)
    flip(folder / "model1-mp4.safetensors", -1 + (folder / "model1-mp4.safetensors").stat().st_size)
    with pytest.raises(SourceChanged, match=r"model1-mp4\.safetensors: modified since its header was read"):
        reshard(job, checkpoint, folder.with_name("merged"))


def test_a_rank_file_that_is_written_to_while_it_is_read_ends_the_run(ranks: Callable[[str], Path]) -> None:
    folder = ranks("reference")
    checkpoint, inventory = opened(folder)
    path = folder / "model1-mp4.safetensors"
    with pytest.raises(SourceChanged, match=r"model1-mp4\.safetensors"):
        reshard(prepare_merge(checkpoint, inventory), checkpoint, folder.with_name("merged"),
                on_progress=lambda _: path.touch())  # fmt: skip


# --- what says how they were made ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["source.zip", "plan.json", "tokenizer.json"])
def test_a_small_file_that_is_damaged_or_gone_is_named(name: str, ranks: Callable[[str], Path]) -> None:
    folder = ranks("sglang")
    flip(folder / name, 10)
    with pytest.raises(BadSkeleton, match=f"{name}: differs from what was written"):
        attempt(folder)
    (folder / name).write_bytes(b"")
    with pytest.raises(BadSkeleton, match=f"{name}: 0 bytes, not the"):
        attempt(folder)
    (folder / name).unlink()
    with pytest.raises(BadSkeleton, match=f"{name}: is gone"):
        attempt(folder)


def test_source_zip_of_another_checkpoint_is_refused(ranks: Callable[[str], Path], tmp_path: Path) -> None:
    folder, other = ranks("reference"), write_checkpoint(tmp_path / "other", small_config(vocab_size=512), 61)
    shard(other, tmp_path / "others", Request(tp=4, engine="reference"))
    shutil.copy(tmp_path / "others/source.zip", folder)
    entries = {entry.name: entry for entry in load_manifest(folder).companions}
    entries |= {"source.zip": next(e for e in load_manifest(tmp_path / "others").companions if e.name == "source.zip")}
    reseal(folder, companions=[entry.model_dump() for entry in entries.values()])
    with pytest.raises(BadSkeleton, match=r"source\.zip: not the headers of the checkpoint that the manifest names"):
        attempt(folder)


def test_a_manifest_that_gives_ranks_other_tensors_than_the_plan_is_refused(ranks: Callable[[str], Path]) -> None:
    folder = ranks("reference")
    files = load_manifest(folder).model_dump(mode="json")["files"]
    del files[0]["tensors"][NORM]
    reseal(folder, files=files)
    with pytest.raises(BadRanks, match="other files, ranks or tensors than the plan gives"):
        attempt(folder)


def test_a_merged_checkpoint_that_lost_its_index_is_no_ranks(ranks: Callable[[str], Path], tmp_path: Path) -> None:
    merge(ranks("node"), tmp_path / "merged")
    (tmp_path / "merged" / "model.safetensors.index.json").unlink()
    with pytest.raises(BadRanks, match="lost its index"):
        opened(tmp_path / "merged")


# --- DeepSeek's converter ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_files_of_the_converter_merge_into_what_they_hold(
    tp: int, expert_dtype: str, model: Path, tmp_path: Path
) -> None:
    shard(model, tmp_path / "reference", Request(tp=tp, engine="reference", expert_dtype=expert_dtype))
    folder = tmp_path / "converted"
    folder.mkdir()
    for name in [path.name for path in (tmp_path / "reference").glob("model*")] + ["tokenizer.json"]:
        shutil.copy(tmp_path / "reference" / name, folder)
    checkpoint, inventory = open_ranks(LocalSource(folder, "converted"), model / CONFIG_FILE)
    reshard(prepare_merge(checkpoint, inventory), checkpoint, tmp_path / "merged")
    found = load_checkpoint(tmp_path / "merged")
    due = held_by(load_checkpoint(model), decoded=True, cast=expert_dtype == "fp8")
    assert {name: (t.dtype, t.shape, raw(t)) for name, t in found.items()} == {
        name: (t.dtype, t.shape, raw(t)) for name, t in due.items()
    }
    assert sorted(path.name for path in (tmp_path / "merged").glob("model-*")) == sorted(
        path.name for path in model.glob("model-*")
    )
    reread, inventory = open_folder(tmp_path / "merged")
    assert inventory.findings == ()
    assert reread.document["expert_dtype"] == expert_dtype
    assert (tmp_path / "merged/tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_files_of_the_converter_reshard_to_more_ranks_as_it_writes_them(converted: Path, model: Path) -> None:
    shard(converted, converted.with_name("found"), Request(tp=8, engine="reference"))
    shard(model, converted.with_name("direct"), Request(tp=8, engine="reference"))
    found, direct = contents(converted.with_name("found")), contents(converted.with_name("direct"))
    names = [name for name in direct if name.endswith(".safetensors")]
    assert len(names) == 8
    assert all(found[name] == direct[name] for name in names)


@pytest.mark.slow
def test_files_of_the_converter_need_a_config(converted: Path, model: Path, tmp_path: Path) -> None:
    (converted / CONFIG_FILE).unlink()
    with pytest.raises(BadConfig, match=r"config\.json: no such file") as caught:
        opened(converted)
    assert "--config PATH" in str(caught.value.hint)
    for command in (["merge"], ["reshard", "--tp", "2"]):
        out = str(tmp_path / command[0])
        call = [command[0], str(converted), out, *command[1:], "--config", str(model / CONFIG_FILE)]
        assert CliRunner().invoke(app, call).exit_code == ExitCode.DONE


def test_a_config_beside_what_says_it_already_is_refused(results: Path, model: Path, tmp_path: Path) -> None:
    for folder in (results / "node", model):
        call = ["reshard", str(folder), str(tmp_path / "out"), "--tp", "2", "--config", str(model / CONFIG_FILE)]
        assert CliRunner().invoke(app, call).exit_code == ExitCode.USAGE


def test_tensors_that_no_checkpoint_has_are_named(converted: Path) -> None:
    path = converted / "model1-mp4.safetensors"
    save_file(load_tensors(path) | {"layers.0.odd": load_tensors(path)[NORM].clone()}, path)
    with pytest.raises(BadRanks, match=r"1 tensors have no known role: layers\.0\.odd"):
        attempt(converted)


# --- a run that ended early ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_merge_that_was_interrupted_goes_on_and_ends_with_the_same_bytes(
    results: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SAVE_BYTES", 1 << 16)
    merge(results / "vllm", tmp_path / "whole")
    left = [1_500_000]

    def stop(count: int) -> None:
        left[0] -= count
        if left[0] < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(results / "vllm", tmp_path / "merged", on_progress=stop, workers=1)
    resumed: list[int] = []
    merge(results / "vllm", tmp_path / "merged", on_resume=resumed.append)
    assert resumed[0] > 1_000_000
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    assert weights(tmp_path / "merged") == weights(model)


def test_work_from_ranks_that_were_written_to_since_is_not_gone_on_with(
    ranks: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = ranks("reference")

    done: list[int] = []

    def stop(count: int) -> None:
        done.append(count)
        if len(done) > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(folder, tmp_path / "merged", on_progress=stop, workers=1)
    (folder / "model3-mp4.safetensors").touch()
    result = CliRunner().invoke(app, ["merge", str(folder), str(tmp_path / "merged")])
    assert result.exit_code == ExitCode.IO
    assert "modified since" in result.output
    merge(folder, tmp_path / "merged", restart=True)
