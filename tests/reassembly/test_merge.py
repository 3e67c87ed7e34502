"""Ranks of every layout merge into the checkpoint that they were made from, and reshard as that does."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from support.checkpoints.small import contents, load_checkpoint, open_folder, raw, rewrite, small_config, with_bf16_o_a
from support.merging import held_by, merge, opened, shard, weights
from support.recipes import Case, cases
from typer.testing import CliRunner

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ExitCode, ForeignPlan, OutputNotEmpty
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reassembly.merge_job import source_of_ranks
from dsv4_shard.sharding import mover
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sharding.run import reshard
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE
from dsv4_shard.verification.result_folder import verify

VLLM_HIDDEN = 256
"""What vLLM's tiles divide."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint, one file a layer. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(hidden_size=VLLM_HIDDEN), 51)


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose wo_a is BF16, so that nothing is decoded on the way. Only to be read."""
    folder = tmp_path_factory.mktemp("small") / "bf16"
    return write_checkpoint(folder, small_config(hidden_size=VLLM_HIDDEN), 52, o_a="BF16")


def rank_files(folder: Path) -> dict[str, bytes]:
    """Every file of a result but those that say what it was made from."""
    beside = ("README.md", "plan.json", "provenance.json", "source.zip", "manifest.json")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in beside
    }


def assert_same_tensors(found: dict[str, torch.Tensor], due: dict[str, torch.Tensor]) -> None:
    assert found.keys() == due.keys()
    for name, tensor in due.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw(found[name]) == raw(tensor), name


# --- reshard, then merge -------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(cases())
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_reshard_then_merge_is_the_identity_on_what_the_ranks_keep(case: Case) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, ranks, merged = (Path(scratch) / name for name in ("source", "ranks", "merged"))
        write_checkpoint(source, case.config, 5, case.mtp, **case.stored)
        checkpoint, inventory = open_folder(source)
        plan = make_plan(checkpoint, inventory, case.request)
        assume(plan.feasible and plan.unwritten is None)
        reshard(prepare(checkpoint, inventory, plan), checkpoint, ranks)
        decodes = (
            checkpoint.tensors["layers.0.attn.wo_a.weight"].dtype != "BF16"
            and case.deployment.engine != "vllm"
            and not (case.deployment.engine == "sglang" and case.deployment.gpu.sm >= 100)
        )
        casts = inventory.routed.name == "FP4" and case.deployment.experts == "FP8"
        found = source_of_ranks(merge(ranks, merged))
        assert bool(found.changes) == (decodes or casts)
        if not found.changes:
            assert weights(merged) == weights(source)
        held = held_by(load_checkpoint(source), decoded=decodes, cast=casts)
        assert_same_tensors(load_checkpoint(merged), held)
        assert (json.loads((merged / CONFIG_FILE).read_text())["expert_dtype"] == "fp8") == (
            case.deployment.experts == "FP8"
        )
        assert verify(merged).ok


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("source", ["model", "bf16"])
def test_node_folders_merge_into_the_very_files(
    source: str, tp: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(source)
    shard(folder, tmp_path / "ranks", Request(tp=tp, nodes=2, engine="node"))
    merge(tmp_path / "ranks", tmp_path / "merged")
    assert contents(folder).items() <= contents(tmp_path / "merged").items()


LAYOUTS = {
    "reference": Request(tp=4, engine="reference"),
    "sglang": Request(tp=4, engine="sglang"),
    "sglang-ep": Request(tp=4, ep=2, engine="sglang"),
    "vllm": Request(tp=4, engine="vllm"),
    "vllm-ep": Request(tp=2, ep=2, engine="vllm"),
    "node": Request(tp=4, nodes=2, engine="node"),
}
READS_BF16 = [layout for layout, request in LAYOUTS.items() if request.engine != "vllm"]
"""vLLM does not serve wo_a in BF16."""

KEEPS_O_A = ("vllm", "vllm-ep", "node")


@pytest.mark.parametrize("layout", READS_BF16)
def test_every_file_is_the_checkpoints_own_where_wo_a_is_bf16(layout: str, bf16: Path, tmp_path: Path) -> None:
    shard(bf16, tmp_path / "ranks", LAYOUTS[layout])
    merge(tmp_path / "ranks", tmp_path / "merged")
    found = contents(tmp_path / "merged")
    assert {name: found[name] for name in contents(bf16)} == contents(bf16)
    assert found.keys() - contents(bf16).keys() == {"manifest.json", "provenance.json"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_as_it_was_is_said_and_nothing_else_differs(layout: str, model: Path, tmp_path: Path) -> None:
    shard(model, tmp_path / "ranks", LAYOUTS[layout])
    source = source_of_ranks(merge(tmp_path / "ranks", tmp_path / "merged"))
    if layout in KEEPS_O_A:
        assert source.changes == ()
        assert weights(tmp_path / "merged") == weights(model)
        return
    assert [(change.tensors, change.first, change.was, change.held) for change in source.changes] == [
        (3, "layers.0.attn.wo_a.weight", "F8_E4M3", "BF16"),
        (3, "layers.0.attn.wo_a.scale", "F8_E8M0", ""),
    ]
    held = held_by(load_checkpoint(model), decoded=True, cast=False)
    assert_same_tensors(load_checkpoint(tmp_path / "merged"), held)
    same = {name for name, found in weights(tmp_path / "merged").items() if weights(model)[name] == found}
    assert same == {"config.json", "model-00001-of-00005.safetensors", "model-00004-of-00005.safetensors"}


@pytest.mark.slow
def test_a_merged_checkpoint_is_one_that_all_commands_read(model: Path, tmp_path: Path) -> None:
    shard(model, tmp_path / "ranks", Request(tp=4, engine="reference", expert_dtype="fp8"))
    merge(tmp_path / "ranks", tmp_path / "merged")
    _, inventory = open_folder(tmp_path / "merged")
    assert inventory.findings == ()
    assert inventory.routed.name == "FP8"
    shard(tmp_path / "merged", tmp_path / "again", Request(tp=4, engine="reference"))
    shard(model, tmp_path / "direct", Request(tp=4, engine="reference", expert_dtype="fp8"))
    assert rank_files(tmp_path / "again") == rank_files(tmp_path / "direct")


def test_a_checkpoint_of_one_file_without_index_comes_back_as_one(model: Path, tmp_path: Path) -> None:
    one = with_bf16_o_a(shutil.copytree(model, tmp_path / "one"))
    shard(one, tmp_path / "ranks", Request(tp=2, engine="reference"))
    merge(tmp_path / "ranks", tmp_path / "merged")
    assert contents(one).items() <= contents(tmp_path / "merged").items()


def test_an_embedding_of_the_draft_that_ranks_leave_out_is_named(model: Path, tmp_path: Path) -> None:
    tensors = load_checkpoint(model)
    tensors["mtp.0.emb.tok_emb.weight"] = tensors["embed.weight"].clone()
    source = rewrite(shutil.copytree(model, tmp_path / "one"), tensors)
    shard(source, tmp_path / "ranks", Request(tp=2, engine="vllm"))
    (change,) = source_of_ranks(merge(tmp_path / "ranks", tmp_path / "merged")).changes
    assert (change.first, change.held) == ("mtp.0.emb.tok_emb.weight", "")
    del tensors["mtp.0.emb.tok_emb.weight"]
    assert_same_tensors(load_checkpoint(tmp_path / "merged"), tensors)


@pytest.mark.slow
def test_any_number_of_workers_and_any_chunk_merges_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(model, tmp_path / "ranks", Request(tp=4, engine="vllm"))
    for workers, chunk in ((1, 8 << 20), (3, 1000), (2, 17)):
        monkeypatch.setattr(mover, "CHUNK_BYTES", chunk)
        merge(tmp_path / "ranks", tmp_path / f"{chunk}", workers=workers)
        assert weights(tmp_path / f"{chunk}") == weights(model)


@pytest.mark.slow
def test_any_range_of_bytes_is_read_as_it_stands_in_the_file(bf16: Path, tmp_path: Path) -> None:
    shard(bf16, tmp_path / "ranks", Request(tp=4, engine="sglang"))
    checkpoint, _ = opened(tmp_path / "ranks")
    random = np.random.default_rng(3)
    for file in checkpoint.files:
        whole = (bf16 / file.name).read_bytes()
        with checkpoint.source.open(file.name) as there:
            for start, stop in np.sort(random.integers(0, len(whole), (20, 2))).tolist():
                assert there.read(start, stop) == whole[start:stop]


# --- verify --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_holds_a_merged_checkpoint_against_manifest_ranks_and_checkpoint(bf16: Path, tmp_path: Path) -> None:
    shard(bf16, tmp_path / "ranks", Request(tp=2, engine="sglang"))
    merge(tmp_path / "ranks", tmp_path / "merged")
    for source in (None, opened(tmp_path / "ranks"), open_folder(bf16)):
        assert verify(tmp_path / "merged", source).ok
    path = tmp_path / "merged" / "model-00002-of-00005.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for source in (None, opened(tmp_path / "ranks"), open_folder(bf16)):
        (problem,) = verify(tmp_path / "merged", source).problems
        assert problem.file == path.name
        assert problem.tensor


@pytest.mark.slow
def test_verify_says_where_a_merged_checkpoint_is_not_the_original(model: Path, tmp_path: Path) -> None:
    shard(model, tmp_path / "ranks", Request(tp=2, engine="sglang"))
    merge(tmp_path / "ranks", tmp_path / "merged")
    assert verify(tmp_path / "merged", opened(tmp_path / "ranks")).ok
    with pytest.raises(ForeignPlan, match="model-00002-of-00005"):
        verify(tmp_path / "merged", open_folder(model))


# --- ranks as a source ---------------------------------------------------------------------------------------------


Sharded = Callable[[Path, Request], Path]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Sharded:
    """Shards of a checkpoint by request, each made once. Only to be read."""
    root = tmp_path_factory.mktemp("sharded")

    @cache
    def made(folder: Path, request: Request) -> Path:
        out = root / f"{len(list(root.iterdir()))}"
        shard(folder, out, request)
        return out

    return made


def assert_reshards_alike(folder: Path, scratch: Path, layout: str, to: str, sharded: Sharded, *, kept: bool) -> None:
    """Ranks of one layout become those of another, to 8 ranks, as their checkpoint does."""
    wanted = Request(tp=8, nodes=2 if to == "node" else None, engine=to)
    ranks, direct, found = sharded(folder, LAYOUTS[layout]), sharded(folder, wanted), scratch / "found"
    shard(ranks, found, wanted)
    assert rank_files(found) == rank_files(direct)
    assert verify(found, opened(ranks)).ok
    if kept:
        assert (found / "source.zip").read_bytes() == (direct / "source.zip").read_bytes()
        assert verify(found, open_folder(folder)).ok
        assert verify(direct, opened(ranks)).ok


@pytest.mark.slow
@pytest.mark.parametrize("to", ["reference", "sglang", "vllm", "node"])
@pytest.mark.parametrize("layout", KEEPS_O_A)
def test_ranks_that_keep_all_bytes_reshard_as_their_checkpoint_does(
    layout: str, to: str, model: Path, sharded: Sharded, tmp_path: Path
) -> None:
    assert_reshards_alike(model, tmp_path, layout, to, sharded, kept=True)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["reference", "sglang", "node"])
@pytest.mark.parametrize("layout", READS_BF16)
def test_ranks_whose_wo_a_was_bf16_reshard_as_their_checkpoint_does(
    layout: str, to: str, bf16: Path, sharded: Sharded, tmp_path: Path
) -> None:
    assert_reshards_alike(bf16, tmp_path, layout, to, sharded, kept=True)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["reference", "sglang"])
@pytest.mark.parametrize("layout", ["reference", "sglang", "sglang-ep"])
def test_ranks_whose_wo_a_was_decoded_reshard_as_their_checkpoint_does_where_it_is_decoded_too(
    layout: str, to: str, model: Path, sharded: Sharded, tmp_path: Path
) -> None:
    assert_reshards_alike(model, tmp_path, layout, to, sharded, kept=False)


@pytest.mark.slow
def test_experts_that_were_cast_reshard_as_a_cast_does(model: Path, tmp_path: Path) -> None:
    for tp in (2, 8):
        shard(model, tmp_path / f"{tp}", Request(tp=tp, engine="reference", expert_dtype="fp8"))
    shard(tmp_path / "2", tmp_path / "found", Request(tp=8, engine="reference"))
    assert rank_files(tmp_path / "found") == rank_files(tmp_path / "8")


# --- the command ---------------------------------------------------------------------------------------------------


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.slow
def test_the_command_says_what_it_wrote_and_what_is_not_as_it_was(model: Path, tmp_path: Path) -> None:
    run("reshard", model, tmp_path / "ranks", "--tp", 2, "--engine", "reference", "--expert-dtype", "fp8")
    shown = " ".join(run("merge", tmp_path / "ranks", tmp_path / "merged").split())
    assert "wrote 5 files" in shown
    assert "72 tensors (layers.0.ffn.experts.0.w1.weight ...) are F8_E4M3 as in the ranks, not I8" in shown
    document = json.loads(run("merge", tmp_path / "ranks", tmp_path / "again", "--json"))
    changed = {"tensors": 3, "was": "F8_E4M3", "held": "BF16"}
    assert any(changed.items() <= change.items() for change in document["changes"])
    assert document["files"] == 5


@pytest.mark.slow
def test_the_command_shows_what_it_would_write_and_treats_a_folder_as_reshard_does(bf16: Path, tmp_path: Path) -> None:
    run("reshard", bf16, tmp_path / "ranks", "--tp", 2)
    would = run("merge", tmp_path / "ranks", tmp_path / "merged", "--dry-run")
    names = re.findall(r"[\w.-]+\.(?:json|safetensors|txt|py)\b", would)
    assert "model-00005-of-00005.safetensors" in names
    assert len(names) == 10
    assert names == sorted(names, key=lambda name: (not name.endswith(".safetensors"), name))
    assert not (tmp_path / "merged").exists()
    run("merge", tmp_path / "ranks", tmp_path / "merged")
    assert "already complete" in run("merge", tmp_path / "ranks", tmp_path / "merged")
    run("reshard", bf16, tmp_path / "others", "--tp", 1)
    assert "not empty" in run("merge", tmp_path / "others", tmp_path / "merged", code=OutputNotEmpty.exit_code)
    run("merge", tmp_path / "ranks", tmp_path / "merged", "--overwrite")
    assert "lies in" in run("merge", tmp_path / "ranks", tmp_path / "ranks" / "merged", code=4)
    assert weights(tmp_path / "merged") == weights(bf16)
    assert "not the shards of ranks" in run("merge", bf16, tmp_path / "other", code=2)


@pytest.mark.slow
def test_inspect_plan_and_numerics_take_ranks_for_their_checkpoint(model: Path, tmp_path: Path) -> None:
    run("reshard", model, tmp_path / "ranks", "--tp", 2, "--engine", "vllm")
    inspected = json.loads(run("inspect", tmp_path / "ranks", "--json"))
    direct = json.loads(run("inspect", model, "--json"))
    assert (inspected["roles"], inspected["matrix"]) == (direct["roles"], direct["matrix"])
    assert [finding["message"] for finding in inspected["findings"]] == ["merged from 2 ranks of vllm shards"]
    run("plan", tmp_path / "ranks", "--tp", 4)
    run("reshard", tmp_path / "ranks", tmp_path / "more", "--tp", 4)
    run("verify", tmp_path / "more", "--against", tmp_path / "ranks", "--numerics")
    assert load_manifest(tmp_path / "more").source.label == str(tmp_path / "ranks")


def test_a_folder_that_is_not_there_is_no_repository_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["merge", "a/shards", "out"])
    assert refused.exit_code == ExitCode.USAGE
    assert "a/shards: no such folder" in refused.stderr
    assert "`hf download a/shards --local-dir shards`" in refused.stderr
