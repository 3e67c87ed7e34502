"""Node folders: checkpoints that lack only other nodes' experts, linked where nothing changes."""

import errno
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.checkpoints.full_size import FLASH, PRO, PRO_FP8, V3, V32, inventory_of
from support.checkpoints.small import contents, load_checkpoint, load_tensors, open_folder, raw, small_config, small_v3
from typer.testing import CliRunner

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.launch import on_every_node
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.errors import InfeasiblePlan, NotEnoughDisk, UsageError
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sharding.outcome import Outcome
from dsv4_shard.sharding.run import reshard
from dsv4_shard.sources.checkpoint_files import INDEX_FILE
from dsv4_shard.text.units import size
from dsv4_shard.verification.moe_numerics import check_numerics
from dsv4_shard.verification.result_folder import verify

EXPERTS = 8
NODES = 2
COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json")

BESIDE_NODES = ("README.md", "plan.json", "source.zip", "manifest.json")

Deal = Callable[[str], str]
"""The file into which a tensor goes, by its name."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint, one file a layer as DeepSeek releases them. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 41)


@pytest.fixture
def mine(model: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(model, tmp_path / "model")


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is on another file system."""
    real = os.link

    def link(source: Any, target: Any) -> None:
        if ".partial" not in str(source):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(os, "link", link)


def split(folder: Path, out: Path, ranks: tuple[int, ...] | None = None, **wanted: Any) -> Outcome:
    """Node folders of `folder`: four GPUs on two nodes, if nothing else is asked for."""
    checkpoint, inventory = open_folder(folder)
    request = Request(**({"tp": 4, "nodes": NODES} | wanted), engine="node")
    return reshard(prepare(checkpoint, inventory, make_plan(checkpoint, inventory, request), ranks), checkpoint, out)


def deal(folder: Path, file_of: Deal) -> Path:
    """Put the tensors of a checkpoint into other files."""
    tensors, files = load_checkpoint(folder), {}  # type: ignore[var-annotated]
    for path in folder.glob("*.safetensors"):
        path.unlink()
    for name, tensor in tensors.items():
        files.setdefault(file_of(name), {})[name] = tensor
    for file, members in files.items():
        save_file(members, folder / file, metadata={"format": "pt", "file": file})
    index = {"metadata": {}, "weight_map": {name: file_of(name) for name in tensors}}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return folder


def expert_of(name: str) -> int:
    """The number of the expert whose tensor this is, -1 for all others."""
    _, found, rest = name.replace(".mlp.", ".ffn.").partition(".ffn.experts.")
    return int(rest.partition(".")[0]) if found else -1


def check_folders(folder: Path, out: Path, nodes: int = NODES) -> None:
    """Each node has all dense tensors and its own experts, bit by bit; each expert is on one node."""
    source = load_checkpoint(folder)
    each = EXPERTS // nodes
    for node in range(nodes):
        there = load_checkpoint(out / f"node-{node}")
        due = [name for name in source if expert_of(name) < 0 or expert_of(name) // each == node]
        assert sorted(there) == sorted(due)
        for name, tensor in there.items():
            assert (tensor.dtype, tensor.shape) == (source[name].dtype, source[name].shape)
            assert raw(tensor) == raw(source[name]), name


def inode(path: Path) -> int:
    return path.stat().st_ino


def flip(path: Path, offset: int = -1) -> None:
    """Change one byte, by default the last, which is a tensor's."""
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


# --- what the folders hold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tp", "nodes", "dp"), [(4, 2, 1), (2, 2, 1), (4, 4, 1), (8, 2, 1), (8, 4, 8), (8, 8, 2)])
def test_each_node_has_the_dense_tensors_and_the_experts_of_its_own_ranks(
    model: Path, tmp_path: Path, tp: int, nodes: int, dp: int
) -> None:
    split(model, tmp_path / "out", tp=tp, nodes=nodes, dp=dp)
    check_folders(model, tmp_path / "out", nodes)


def test_every_expert_is_on_exactly_one_node(model: Path, tmp_path: Path) -> None:
    split(model, tmp_path / "out")
    found = Counter(name for node in range(NODES) for name in load_checkpoint(tmp_path / "out" / f"node-{node}"))
    for name, count in found.items():
        assert count == (NODES if expert_of(name) < 0 else 1), name
    assert found.keys() == load_checkpoint(model).keys()


def test_files_have_the_names_that_they_have_in_the_checkpoint(model: Path, tmp_path: Path) -> None:
    split(model, tmp_path / "out")
    names = {path.name for path in model.iterdir()}
    for node in range(NODES):
        assert {path.name for path in (tmp_path / "out" / f"node-{node}").iterdir()} == {*names, "README.md"}
    own = {"node-0", "node-1", "provenance.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*own, *BESIDE_NODES}
    for name in COPIED:
        assert (tmp_path / "out" / "node-1" / name).read_bytes() == (model / name).read_bytes()


def test_the_index_names_exactly_the_tensors_of_the_files(model: Path, tmp_path: Path) -> None:
    split(model, tmp_path / "out")
    for folder in (tmp_path / "out" / "node-0", tmp_path / "out" / "node-1"):
        index = json.loads((folder / INDEX_FILE).read_text())
        assert (folder / INDEX_FILE).read_text() == json.dumps(index, indent=2) + "\n"
        stands = {name: path.name for path in folder.glob("*.safetensors") for name in load_tensors(path)}
        assert index["weight_map"] == stands
        nbytes = sum(len(raw(tensor)) for tensor in load_checkpoint(folder).values())
        assert index["metadata"] == {"total_size": nbytes}


def test_a_folder_is_a_checkpoint_that_lacks_only_experts(model: Path, tmp_path: Path) -> None:
    split(model, tmp_path / "out")
    checkpoint, inventory = open_folder(tmp_path / "out" / "node-1")
    assert checkpoint.findings == ()
    (error,) = inventory.errors
    blocks = small_config()["num_hidden_layers"] + 1
    assert error.code == "missing-tensors"
    missing = blocks * (EXPERTS // NODES) * 3
    assert (
        f"{missing} tensors are missing, {missing} of them of routed experts: layers.0.ffn.experts.0." in error.message
    )


def test_headers_say_no_more_than_those_of_a_checkpoint(model: Path, tmp_path: Path) -> None:
    split(model, tmp_path / "out")
    for path in (tmp_path / "out").glob("*/*.safetensors"):
        length = int.from_bytes(path.read_bytes()[:8], "little")
        metadata = json.loads(path.read_bytes()[8 : 8 + length]).get("__metadata__")
        assert metadata == {"format": "pt"} or path.read_bytes() == (model / path.name).read_bytes()


def test_the_manifest_says_what_the_folders_are_for(model: Path, tmp_path: Path) -> None:
    split(model, tmp_path / "out", tp=8)
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.layout, manifest.world, manifest.ranks) == ("node", 2, (0, 1))
    assert manifest.identity == {"layout": "dsv4-shard node 1", "nodes": "2", "tp": "8", "ep": "8"}
    assert manifest.left_out == {}


def test_one_file_without_an_index_gets_one(mine: Path, tmp_path: Path) -> None:
    deal(mine, lambda _: "model.safetensors")
    (mine / INDEX_FILE).unlink()
    split(mine, tmp_path / "out")
    check_folders(mine, tmp_path / "out")
    assert set(json.loads((tmp_path / "out/node-0" / INDEX_FILE).read_text())["weight_map"].values()) == {
        "model.safetensors"
    }


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), files=st.integers(1, 12), nodes=st.sampled_from([2, 4]))
def test_tensors_may_be_dealt_out_to_files_in_any_way(
    model: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, files: int, nodes: int
) -> None:
    folder = shutil.copytree(model, tmp_path_factory.mktemp("dealt") / "model")
    pick = random.Random(seed)
    chosen = {name: f"{pick.randrange(files)}.safetensors" for name in load_checkpoint(folder)}
    if pick.random() < 0.5:  # files of dense tensors and of single nodes' experts
        chosen |= {name: f"{expert_of(name) // 2 + 1}.safetensors" for name in chosen if pick.random() < 0.98}
    deal(folder, chosen.__getitem__)
    out = folder.parent / "out"
    split(folder, out, nodes=nodes)
    check_folders(folder, out, nodes)
    assert verify(out).ok
    assert verify(out, open_folder(folder)).ok


# --- links ---------------------------------------------------------------------------------------------------------

DENSE_FILES = ("model-00001-of-00005.safetensors", "model-00004-of-00005.safetensors")
"""Embedding, and head with what stands beside it: all other files hold experts."""


def test_files_that_go_over_whole_are_the_checkpoints_own(model: Path, tmp_path: Path) -> None:
    outcome = split(model, tmp_path / "out")
    for name in (path.name for path in model.glob("*.safetensors")):
        inodes = {inode(model / name), inode(tmp_path / "out/node-0" / name), inode(tmp_path / "out/node-1" / name)}
        assert len(inodes) == (1 if name in DENSE_FILES else 3)
    assert (outcome.files, outcome.linked) == (6, 2)


def test_what_is_linked_is_not_counted_as_written(model: Path, tmp_path: Path) -> None:
    outcome = split(model, tmp_path / "out")
    own = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name not in (*DENSE_FILES, "manifest.json")]
    assert outcome.bytes == sum(path.stat().st_size for path in own)


def test_a_link_in_the_checkpoint_is_followed_as_in_a_hub_cache(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(mine.glob("*.safetensors"))):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(f"../blobs/{number}")
    assert split(mine, tmp_path / "out").linked == 2
    first = tmp_path / "out" / "node-0" / DENSE_FILES[0]
    assert not first.is_symlink()
    assert inode(first) == inode(tmp_path / "blobs" / "0")


def test_a_file_of_one_nodes_experts_is_linked_there_and_absent_elsewhere(mine: Path, tmp_path: Path) -> None:
    def file_of(name: str) -> str:
        return "dense.safetensors" if expert_of(name) < 0 else f"experts-{expert_of(name) // 4}.safetensors"

    deal(mine, file_of)
    assert split(mine, tmp_path / "out").files == 0
    check_folders(mine, tmp_path / "out")
    for node in range(NODES):
        files = {path.name: inode(path) for path in (tmp_path / "out" / f"node-{node}").glob("*.safetensors")}
        assert files == {name: inode(mine / name) for name in ("dense.safetensors", f"experts-{node}.safetensors")}


def test_a_file_may_go_over_whole_to_one_node_and_in_part_to_another(mine: Path, tmp_path: Path) -> None:
    deal(mine, lambda name: "a.safetensors" if expert_of(name) < EXPERTS // NODES else "b.safetensors")
    assert split(mine, tmp_path / "out").linked == 2
    check_folders(mine, tmp_path / "out")
    assert inode(tmp_path / "out/node-0/a.safetensors") == inode(mine / "a.safetensors")
    assert inode(tmp_path / "out/node-1/a.safetensors") != inode(mine / "a.safetensors")
    assert not (tmp_path / "out/node-0/b.safetensors").exists()
    assert verify(tmp_path / "out", open_folder(mine)).ok


def test_on_another_file_system_they_are_copied_once_and_linked_to_each_other(
    model: Path, tmp_path: Path, no_links: None
) -> None:
    outcome = split(model, tmp_path / "out")
    assert (outcome.files, outcome.linked) == (8, 0)
    for name in DENSE_FILES:
        first, second = (tmp_path / "out" / f"node-{node}" / name for node in range(NODES))
        assert inode(first) == inode(second) != inode(model / name)
        assert first.read_bytes() == (model / name).read_bytes()
    assert verify(tmp_path / "out", open_folder(model)).ok


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV])
def test_where_nothing_can_be_linked_all_is_copied_and_the_manifest_is_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    split(model, tmp_path / "linked")

    def link(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    assert split(model, tmp_path / "copied").linked == 0
    for node in range(NODES):
        assert contents(tmp_path / "linked" / f"node-{node}") == contents(tmp_path / "copied" / f"node-{node}")
    assert load_manifest(tmp_path / "linked") == load_manifest(tmp_path / "copied")
    assert verify(tmp_path / "copied", open_folder(model)).ok


def test_linked_files_are_never_written_to(mine: Path, tmp_path: Path) -> None:
    for path in mine.iterdir():
        os.utime(path, ns=(1, 1))
    before = contents(mine)
    split(mine, tmp_path / "out")
    checkpoint, inventory = open_folder(mine)
    plan = make_plan(checkpoint, inventory, Request(4, engine="node", nodes=4))
    reshard(prepare(checkpoint, inventory, plan), checkpoint, tmp_path / "out", overwrite=True)
    assert contents(mine) == before
    assert {path.stat().st_mtime_ns for path in mine.iterdir()} == {1}


def test_a_linked_file_survives_the_checkpoint(mine: Path, tmp_path: Path) -> None:
    split(mine, tmp_path / "out")
    shutil.rmtree(mine)
    assert verify(tmp_path / "out").ok


def test_room_is_needed_only_for_what_is_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, inventory = open_folder(model)
    job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, Request(4, engine="node", nodes=2)))
    needed = job.nbytes_to_write(checkpoint.source, tmp_path / "out")
    assert needed == job.nbytes - sum((model / name).stat().st_size for name in DENSE_FILES)
    monkeypatch.setattr("dsv4_shard.storage.output_folder.free_bytes", lambda _: needed - 1)
    with pytest.raises(NotEnoughDisk):
        reshard(job, checkpoint, tmp_path / "out")
    monkeypatch.setattr("dsv4_shard.storage.output_folder.free_bytes", lambda _: needed)
    assert reshard(job, checkpoint, tmp_path / "out").bytes == needed


# --- verification --------------------------------------------------------------------------------------------------


def test_folders_are_verified_alone_and_against_the_checkpoint(model: Path, tmp_path: Path) -> None:
    split(model, tmp_path / "out")
    alone = verify(tmp_path / "out")
    assert (alone.problems, alone.notes) == ((), ())
    found = verify(tmp_path / "out", open_folder(model))
    assert found.problems == ()
    names = load_checkpoint(model)
    experts = sum(expert_of(name) >= 0 for name in names)
    assert found.accounts == {
        "whole on every rank": len(names) - experts,
        "whole on one rank, their expert's": experts,
    }


@pytest.mark.parametrize("name", ["model-00002-of-00005.safetensors", *DENSE_FILES])
@pytest.mark.parametrize("node", range(NODES))
def test_one_flipped_byte_is_found_also_in_a_file_that_is_the_checkpoints_own(
    mine: Path, tmp_path: Path, node: int, name: str
) -> None:
    split(mine, tmp_path / "out")
    flip(tmp_path / "out" / f"node-{node}" / name)
    for found in (verify(tmp_path / "out"), verify(tmp_path / "out", open_folder(mine))):
        (problem,) = found.problems
        assert Path(problem.file).name == name
        assert problem.tensor is not None
    assert problem.kind == ("damaged-tensor" if name in DENSE_FILES else "differs-from-source")


def test_a_damaged_index_or_config_is_found(model: Path, tmp_path: Path) -> None:
    split(model, tmp_path / "out")
    flip(tmp_path / "out/node-1" / INDEX_FILE, 5)
    (tmp_path / "out/node-0/config.json").unlink()
    (tmp_path / "out/node-0/mine.txt").write_text("mine")
    found = verify(tmp_path / "out")
    assert {(problem.kind, problem.file) for problem in found.problems} == {
        ("damaged-file", f"node-1/{INDEX_FILE}"),
        ("lost-file", "node-0/config.json"),
    }
    assert found.notes == ("node-0/mine.txt is not part of the result",)


@pytest.mark.slow
def test_the_experts_of_all_nodes_add_up_with_the_shared_one_once(model: Path, tmp_path: Path) -> None:
    split(model, tmp_path / "out")
    sums = check_numerics([tmp_path / "out"], *open_folder(model))
    assert sums.ok
    assert (sums.ranks, sums.shared_experts) == (2, "whole")
    assert sums.error_on_every_rank > 1e-2


# --- nodes as ranks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", range(NODES))
def test_a_nodes_share_is_its_folder_and_no_other(model: Path, tmp_path: Path, node: int) -> None:
    split(model, tmp_path / "all")
    split(model, tmp_path / "one", ranks=(node,))
    own = {f"node-{node}", f"provenance.ranks-{node}.json"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == {*own, *BESIDE_NODES}
    assert contents(tmp_path / "one" / f"node-{node}") == contents(tmp_path / "all" / f"node-{node}")
    manifest = load_manifest(tmp_path / "one")
    assert (manifest.ranks, manifest.world) == ((node,), NODES)
    assert verify(tmp_path / "one").ok
    assert verify(tmp_path / "one", open_folder(model)).ok
    with pytest.raises(UsageError, match="1 of 2 ranks"):
        check_numerics([tmp_path / "one"], *open_folder(model))


def test_there_are_as_many_ranks_as_nodes(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rank 2 of 2; the last one is 1"):
        split(model, tmp_path / "out", ranks=(2,))


# --- plan and refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "rule", "reason"),
    [
        ({"tp": 8, "nodes": 3}, "nodes", "GPUs 8 / nodes 3 = 2.67: not whole"),
        ({"tp": 2, "nodes": 4}, "nodes", "GPUs 2 / nodes 4 = 0.5: not whole"),
        ({"tp": 8, "ep": 4, "nodes": 2}, "ep-tp", "EP is 4 and MoE TP 2"),
        ({"tp": 8, "ep": 1, "nodes": 2}, "ep-tp", "EP is 1 and MoE TP 8"),
        ({"tp": 16, "nodes": 2, "dp": 16}, "experts", "n_routed_experts 8 / EP 16 = 0.5: not whole"),
        ({"tp": 8, "nodes": 2, "runner": "triton"}, "triton-fp4", "does not take FP4"),
    ],
)
def test_what_folders_cannot_serve_is_refused(
    model: Path, tmp_path: Path, wanted: dict[str, Any], rule: str, reason: str
) -> None:
    checkpoint, inventory = open_folder(model)
    plan = make_plan(checkpoint, inventory, Request(engine="node", **wanted))
    assert rule in [breach.rule for breach in plan.breaches]
    assert any(reason in breach.reason for breach in plan.breaches)
    with pytest.raises(InfeasiblePlan):
        split(model, tmp_path / "out", **wanted)
    assert not (tmp_path / "out").exists()


def test_one_node_needs_the_checkpoint_as_it_is(model: Path, tmp_path: Path) -> None:
    checkpoint, inventory = open_folder(model)
    plan = make_plan(checkpoint, inventory, Request(4, engine="node"), "model")
    assert plan.feasible
    assert plan.unwritten == "one node needs every expert, which is the checkpoint as it is"
    assert not any("folder" in choice for choice in plan.notes)
    assert "--model-path model --tp 4 --ep-size 4" in plan.launch.commands[0]
    with pytest.raises(UsageError, match="one node needs every expert"):
        split(model, tmp_path / "out", nodes=1)


@pytest.mark.parametrize("wanted", [{}, {"dp": 16}, {"a2a": "deepep"}, {"gpu": "b200"}, {"nodes": 4}])
@pytest.mark.parametrize("name", [PRO, FLASH, V3, V32])
def test_a_plan_is_sglangs_for_the_same_gpus(name: str, wanted: dict[str, Any]) -> None:
    checkpoint, inventory = inventory_of(name)
    wanted = {"dp": 2 if name == FLASH else 1, "nodes": 2} | wanted
    ours = make_plan(checkpoint, inventory, Request(16, engine="node", **wanted))
    theirs = make_plan(checkpoint, inventory, Request(16, ep=16, engine="sglang", **wanted))
    assert ours.feasible
    assert theirs.feasible
    assert ours.totals == theirs.totals
    assert ours.modules == theirs.modules
    assert ours.memory == theirs.memory
    assert ours.deployment == theirs.deployment.model_copy(update={"engine": "node"})
    assert ours.launch.environment == theirs.launch.environment
    assert len(ours.launch.commands) == wanted["nodes"]


def test_each_node_is_started_on_its_own_folder_with_the_stock_loader() -> None:
    plan = make_plan(*inventory_of(PRO), Request(16, engine="node", nodes=2), "some where/Pro")
    assert plan.reshard == "dsv4-shard reshard 'some where/Pro' Pro-node-tp16 --tp 16 --engine node --nodes 2"
    for node, command in enumerate(plan.launch.commands):
        assert f"--model-path Pro-node-tp16/node-{node} --tp 16 --ep-size 16 " in command
        assert f"--nnodes 2 --node-rank {node} " in command
        assert "--load-format" not in command
    assert plan.launch.environment == {"SGLANG_SHARED_EXPERT_TP1": "1"}


@pytest.mark.parametrize("parent", ["/data/node-1-data", "/data/node-1", "'/my data/node-1'"])
def test_one_command_for_all_nodes_varies_the_nodes_own_folder_alone(parent: str) -> None:
    inventory = inventory_of(PRO)[1]
    choice, engine = choose(inventory, Request(16, engine="node", nodes=2)), engine_for("node", inventory.family)
    launch = engine.launch(Context(inventory, choice.deployment), f"{parent}/out", True)
    command, more = on_every_node(launch.launcher, launch.program, launch.node_options, {})
    assert f"--model-path {parent}/out/node-$NODE_RANK --tp 16" in command
    assert f"--model-path {parent}/out/node-1 " in launch.commands[1]
    assert more == ()


def test_the_plan_says_what_a_folder_holds_and_what_it_does_not_serve() -> None:
    checkpoint, inventory = inventory_of(PRO)
    *_, folders, serves, links, vllm = make_plan(checkpoint, inventory, Request(16, engine="node", nodes=2)).notes
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    experts = sum(tensor.nbytes for name, tensor in checkpoint.tensors.items() if expert_of(name) >= 0)
    assert f"{size(total - experts // 2)} of {size(total)}" in folders
    assert f"dense tensors whole ({size(total - experts)})" in folders
    assert "192 of 384 experts" in folders
    for word in ("EP over all GPUs", "EPLB", "redundant experts", "missing expert"):
        assert word in serves
    assert "hard links" in links
    assert "vllm serve OUT/node-M " in vllm
    assert "--tensor-parallel-size 16 --enable-expert-parallel " in vllm
    assert "--nnodes 2 --node-rank M " in vllm


@pytest.mark.parametrize(
    ("name", "wanted", "reason"),
    [(PRO_FP8, {}, "wo_a is stored in BF16"), (PRO, {"gpu": "rtx-pro-6000", "dp": 16}, None)],
)
def test_the_plan_says_where_vllm_does_not_serve_them(name: str, wanted: dict[str, Any], reason: str | None) -> None:
    plan = make_plan(*inventory_of(name), Request(16, engine="node", nodes=2, **wanted))
    vllm = plan.notes[-1]
    assert ("vllm serve" in vllm) == (reason is None)
    assert "does not serve these folders: " + (reason or "") in vllm or reason is None
    assert wanted.get("dp") is None or "--tensor-parallel-size 1 --data-parallel-size 16 " in vllm


@pytest.mark.slow
def test_vllm_is_not_named_where_its_loader_would_misread_the_scales(mine: Path) -> None:
    tensors = load_checkpoint(mine)
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(config | {"expert_dtype": "fp8"}))
    for name in [name for name in tensors if expert_of(name) >= 0 and name.endswith("weight")]:
        rows, cols = tensors[name].shape
        tensors[name] = torch.zeros(rows, 2 * cols, dtype=torch.float8_e4m3fn)
        scale = torch.zeros(-(-rows // 128), -(-2 * cols // 128), dtype=torch.uint8)
        tensors[name.removesuffix("weight") + "scale"] = scale.view(torch.float8_e8m0fnu)
    save_file(tensors, mine / "model.safetensors")
    (mine / INDEX_FILE).unlink()
    plan = make_plan(*open_folder(mine), Request(4, engine="node", nodes=2))
    assert plan.feasible
    assert plan.notes[-1].endswith("(2^-7 becomes 120)")


# --- V3's generation -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["v3", "v32"])
@pytest.mark.parametrize(("tp", "nodes"), [(4, 2), (8, 4)])
def test_folders_of_v3_have_its_dense_tensors_and_each_nodes_own_experts(
    family: str, tp: int, nodes: int, tmp_path: Path
) -> None:
    folder, out = small_v3(tmp_path / "model", family), tmp_path / "out"
    split(folder, out, tp=tp, nodes=nodes)
    check_folders(folder, out, nodes)
    assert verify(out, open_folder(folder)).ok
    sums = check_numerics([out], *open_folder(folder))
    assert (sums.ok, sums.ranks, sums.shared_experts) == (True, nodes, "whole")


@pytest.mark.slow
def test_the_plan_for_v3_gives_both_engines_commands() -> None:
    plan = make_plan(*inventory_of(V3), Request(16, engine="node", nodes=2))
    assert "128 of 256 experts" in plan.notes[0]
    assert "vllm serve OUT/node-M --trust-remote-code --tensor-parallel-size 16 " in plan.notes[-1]
    assert "--model-path DeepSeek-V3-node-tp16/node-1 --tp 16 --ep-size 16 " in plan.launch.commands[1]
    assert plan.launch.environment == {}
    with_dp = make_plan(*inventory_of(V3), Request(16, dp=2, engine="node", nodes=2))
    assert "does not serve these folders: vLLM's own classes of this generation" in with_dp.notes[-1]


# --- commands ------------------------------------------------------------------------------------------------------


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.mark.slow
def test_the_commands_take_folders_from_plan_to_verification(model: Path, tmp_path: Path) -> None:
    options = ("--engine", "node", "--tp", 4, "--nodes", 2)
    assert "node-$NODE_RANK" in run("plan", model, *options, "-o", tmp_path / "plan.json")
    dry = json.loads(run("reshard", model, tmp_path / "out", *options, "--dry-run", "--json"))
    assert set(dry["files"]) >= {f"node-0/{DENSE_FILES[0]}", "node-1/model-00002-of-00005.safetensors"}
    shown = run("reshard", model, tmp_path / "out", "--plan", tmp_path / "plan.json", "--dry-run")
    assert "links to the checkpoint's own files: " in shown
    done = json.loads(run("reshard", model, tmp_path / "out", "--plan", tmp_path / "plan.json", "--json"))
    assert (done["bytes"], done["linked"]) == (dry["bytes"], 2)
    assert "no problems found" in run("verify", tmp_path / "out", "--against", model, "--numerics")
    assert "2 more are links" in run("reshard", model, tmp_path / "again", *options)
    assert "Does not run" in run("plan", model, *options, "--ep", 2, code=1)
