"""What a loader refuses: files of another rank, runner, parallelism, version or shape, each by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv4_shard.errors import LoadRefused, NotAResult
from dsv4_shard.loading.checks import (
    check_apart,
    check_fact,
    check_file,
    check_parameters,
    find_manifest,
    rank_files,
)
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.tensors.header import Header, build_header


def check_rank(folder: Path, rank: int) -> dict[str, Header]:
    """As a loader does: every file of a rank, in its folder."""
    manifest, root, inner = find_manifest(folder)
    return {name: check_file(root / name, entry, rank) for name, entry in rank_files(manifest, inner, rank)}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("inner", ["", "draft"])
def test_a_sound_result_is_taken_for_each_rank_target_and_draft_apart(result: Path, rank: int, inner: str) -> None:
    headers = check_rank(result / inner, rank)
    prefix = f"{inner}/" if inner else ""
    assert list(headers) == [
        f"{prefix}model-rank-{rank}-part-1.safetensors",
        f"{prefix}model-rank-{rank}-part-0.safetensors",
    ]
    names = [name for header in headers.values() for name in header.tensors]
    assert len(names) == len(set(names))
    assert any(name.startswith("model.decoder.") for name in names) == bool(inner)


def test_swapped_rank_files_are_refused_by_name(folder: Path) -> None:
    one, other = (folder / f"model-rank-{rank}-part-0.safetensors" for rank in (0, 1))
    one.rename(folder / "x"), other.rename(one), (folder / "x").rename(other)
    with pytest.raises(LoadRefused, match=r"model-rank-0-part-0.* holds the shards of rank 1, this is rank 0: swapped"):
        check_rank(folder, 0)


def test_a_rank_that_is_not_in_the_folder_is_refused(folder: Path) -> None:
    with pytest.raises(LoadRefused, match=r"ranks 0, 1 of 2, not rank 2"):
        check_rank(folder, 2)


def test_a_lost_file_is_refused(folder: Path) -> None:
    (folder / "model-rank-1-part-0.safetensors").unlink()
    check_rank(folder, 0)
    with pytest.raises(LoadRefused, match="model-rank-1-part-0"):
        check_rank(folder, 1)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "model-rank-0-part-0.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(LoadRefused, match="truncated"):
        check_rank(folder, 0)


def test_a_file_from_elsewhere_with_this_ranks_number_is_refused(folder: Path) -> None:
    header, _ = build_header({"model.norm.weight": ("BF16", (2,))}, {"rank": "0"})
    (folder / "model-rank-0-part-0.safetensors").write_bytes(header + bytes(4))
    with pytest.raises(LoadRefused, match="bytes"):
        check_rank(folder, 0)


def test_a_folder_without_its_manifest_is_refused(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(NotAResult):
        check_rank(folder, 0)


def test_an_edited_identity_is_refused(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    document["identity"]["moe_runner"] = "flashinfer_mxfp4"
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(NotAResult, match="damaged"):
        check_rank(folder, 0)


def test_the_identity_tells_what_shapes_do_not(result: Path) -> None:
    assert load_manifest(result).identity == {
        "layout": "dsv4-shard sglang 1",
        "engine": "sglang 0.5.23",
        "gpu_family": "Hopper",
        "moe_runner": "marlin",
        "moe_a2a": "none",
        "tp": "2",
        "ep": "1",
        "attention_dp": "1",
        "shared_experts": "whole",
        "experts": "FP4",
        "w13_order": "gate, up",
        "wo_a": "BF16",
        "environment": "SGLANG_SHARED_EXPERT_TP1=1",
    }


def test_a_fact_that_differs_is_refused_with_both_values_and_a_remedy() -> None:
    check_fact("tp", "2", 2, "start again")
    with pytest.raises(LoadRefused, match=r"^tp: the files are for 2, found 4: start again$"):
        check_fact("tp", "2", 4, "start again")
    with pytest.raises(LoadRefused, match=r"^tp: the files are for 2\\n, found 2: start again$"):
        check_fact("tp", "2\n", 2, "start again")


def test_two_names_for_one_place_in_memory_are_refused() -> None:
    check_apart({"a": 1, "b": 2})
    with pytest.raises(LoadRefused, match=r"^a and c are one parameter in the model and two in the files"):
        check_apart({"a": 1, "b": 2, "c": 1})


REMEDY = "start it as planned"

HELD = {"a.weight": ("BF16", (2, 3)), "b.scale": ("F32", ())}


def test_the_models_own_parameters_are_taken() -> None:
    check_parameters(HELD, HELD, REMEDY)
    check_parameters(HELD, HELD | {"c.k_scale": ("F32", ())}, REMEDY, frozenset({"c.k_scale"}))


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (HELD | {"c": ("F32", (1,))}, r"1 parameters of the model are in no file: c"),
        ({"a.weight": HELD["a.weight"]}, r"1 parameters in the files are unknown to the model: b\.scale"),
        (HELD | {"a.weight": ("BF16", (2, 4))}, r"a\.weight is BF16 \[2, 3\] in the file, BF16 \[2, 4\] in the model"),
        (HELD | {"a.weight": ("F32", (2, 3))}, r"a\.weight is BF16 \[2, 3\] in the file, F32 \[2, 3\] in the model"),
    ],
)
def test_a_missing_unknown_or_other_parameter_is_refused_by_name(wanted: dict[str, Any], why: str) -> None:
    with pytest.raises(LoadRefused, match=why):
        check_parameters(HELD, wanted, REMEDY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("dsv4_shard.sglang_plugin", {"torch", "typer", "rich", "huggingface_hub", "numpy", "pydantic"}),
        ("dsv4_shard.vllm_plugin", {"torch", "typer", "rich", "huggingface_hub", "numpy", "pydantic"}),
        ("dsv4_shard.loading.checks", {"torch", "typer", "rich", "huggingface_hub"}),
    ],
    ids=["sglang", "vllm", "checks"],
)
def test_the_plugin_brings_no_command_line_into_the_engines_processes(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*{unwanted} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_file_of_two_ranks_with_one_name_is_refused(folder: Path) -> None:
    manifest, _, inner = find_manifest(folder)
    files = [entry.model_copy(update={"links": ()}) if entry.links else entry for entry in manifest.files]
    edited = manifest.model_copy(update={"files": tuple(files)})
    assert files != list(manifest.files)
    with pytest.raises(LoadRefused, match="is of 2 ranks and has no name for each"):
        list(rank_files(edited, inner, 1))
