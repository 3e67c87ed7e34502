"""`--draft`: the draft in commands, memory, KV cache and files; refusals of drafts that a release does not have."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.full_size import FLASH, PRO, PRO_NVFP4, V3, inventory_of
from support.checkpoints.small import dspark_config, small_config, write_dspark

import dsv4_shard
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.engines.verdict import Verdict
from dsv4_shard.opening import open_checkpoint
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.search import search

FLASH_0731 = "DeepSeek-V4-Flash-0731"
OF_RELEASE = {FLASH: "mtp", PRO: "mtp", FLASH_0731: "dspark", V3: "mtp"}


def planned(model: str, **options: Any) -> Plan:
    asked: dict[str, Any] = {"tp": 8, "gpu": "h200"} | options
    return make_plan(*inventory_of(model), Request(**asked), "REPO")


def options_of(plan: Plan) -> list[str]:
    return [word for way in plan.ways for command in way.launch.commands for word in shlex.split(command)]


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("model", OF_RELEASE)
def test_an_asked_draft_is_in_every_command(engine: str, model: str) -> None:
    usual, plan = (planned(model, engine=engine, draft=draft) for draft in (None, OF_RELEASE[model]))
    assert plan.feasible
    others = {way.serves: way for way in usual.ways}
    for way in plan.ways:
        other = others[way.serves]
        assert way.launch.draft_options == ""
        for option in shlex.split(other.launch.draft_options):
            for command in way.launch.commands:
                assert option in shlex.split(command)


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("model", [FLASH, FLASH_0731])
def test_an_asked_draft_takes_memory_from_the_kv_cache(engine: str, model: str) -> None:
    usual, plan = (planned(model, engine=engine, draft=draft) for draft in (None, OF_RELEASE[model]))
    assert plan.totals == usual.totals
    assert plan.totals is not None
    assert plan.memory is not None
    assert usual.memory is not None
    own = plan.totals.draft_bytes_per_rank - plan.totals.other_draft_bytes_per_rank
    assert own > 0
    assert plan.memory.weights == usual.memory.weights + own
    assert plan.memory.kv_cache is not None
    assert usual.memory.kv_cache is not None
    assert plan.memory.kv_cache.room == usual.memory.kv_cache.room - own
    assert plan.memory.kv_cache.session_bytes >= usual.memory.kv_cache.session_bytes


def test_the_kv_cache_of_a_draft_that_was_not_compared_has_no_number() -> None:
    plan = planned(V3, draft="mtp")
    assert plan.memory is not None
    assert plan.memory.kv_cache is None


@pytest.mark.parametrize(("engine", "model", "draft", "says"), [
    ("sglang", FLASH_0731, "mtp", "uninitialised"),
    ("vllm", FLASH_0731, "mtp", "KeyError: 'model.layers.43.mtp_block.main_norm.weight'"),
    ("sglang", FLASH, "dspark",
     "ValueError: DSpark dense speculative decoding requires setting --speculative-draft-model-path."),
    ("vllm", FLASH, "dspark", "'DeepseekV4Config' object has no attribute 'dspark_target_layer_ids'"),
])  # fmt: skip
def test_a_draft_that_the_release_does_not_have_is_refused(engine: str, model: str, draft: str, says: str) -> None:
    plan = planned(model, engine=engine, draft=draft)
    (breach,) = plan.breaches
    assert says in (breach.engine_says or breach.consequence)
    assert plan.verdict is Verdict.FAILS
    assert breach.remedies == (f"the release's own draft: --draft {OF_RELEASE[model]}",)
    assert plan.alternatives


@pytest.mark.parametrize(("options", "rule", "remedy"), [
    ({"dp": 8}, "dspark-head", "--dp-lm-head"),
    ({"dp": 8, "dp_lm_head": True, "a2a": "deepep"}, "dspark-a2a", "leave --a2a out"),
])  # fmt: skip
def test_sglang_refuses_dspark_under_attention_dp(options: dict[str, Any], rule: str, remedy: str) -> None:
    plan = planned(FLASH_0731, draft="dspark", **options)
    breach = plan.breaches[0]
    assert breach.rule == rule
    assert (breach.engine_says or "").startswith("ValueError: DSpark with dp attention")
    assert remedy in breach.remedies
    usual = planned(FLASH_0731, **options)
    assert usual.feasible
    assert [loss.part for loss in usual.losses] == ["DSpark"]


def test_no_command_has_dspark_beside_a_backend_that_sglang_refuses_it_with() -> None:
    plan = planned(FLASH_0731, dp=8, dp_lm_head=True, a2a="deepep")
    assert [way.launch.draft_options for way in plan.ways] == [""] * len(plan.ways)


@pytest.mark.parametrize(("engine", "gpu", "verdict"), [
    ("sglang", "b200", Verdict.RUNS), ("vllm", "b200", Verdict.RUNS), ("vllm", "h200", Verdict.RUNS),
    ("sglang", "h200", Verdict.UNVERIFIED),
])  # fmt: skip
def test_an_fp4_draft_beside_nvfp4_experts_runs_where_sglang_has_its_kernels(
    engine: str, gpu: str, verdict: Verdict
) -> None:
    plan = planned(PRO_NVFP4, engine=engine, gpu=gpu, draft="mtp")
    assert plan.verdict is verdict
    if plan.feasible:
        rows = [row for row in plan.modules if row.role == "routed_expert.gate"]
        assert {(row.part_of, row.format.split()[0]) for row in rows} == {("target", "NVFP4"), ("draft", "FP4")}


@pytest.mark.parametrize("engine", ["reference", "trtllm"])
def test_engines_without_a_draft_of_its_own_have_no_such_option(engine: str) -> None:
    assert [breach.rule for breach in planned(FLASH, engine=engine, draft="mtp").breaches] == ["draft-option"]


@pytest.mark.parametrize("engine", ["sglang", "vllm", "node"])
def test_draft_none_leaves_the_draft_out(engine: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", small_config(hidden_size=256), seed=3)
    asked: dict[str, Any] = {"tp": 2, "engine": engine, "nodes": 2 if engine == "node" else None}
    dsv4_shard.reshard(source, tmp_path / "out", draft="none", **asked)
    assert dsv4_shard.verify(tmp_path / "out", against=source).ok
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_dir()}
    assert "draft" not in names
    plan = make_plan(*open_checkpoint(str(source)), Request(**asked, draft="none"), "REPO")
    assert not any("speculative" in word for word in options_of(plan))
    assert [way.launch.draft_options for way in plan.ways] == [""] * len(plan.ways)
    dsv4_shard.reshard(source, tmp_path / "usual", **asked)
    for path in (tmp_path / "out").rglob("*.safetensors"):
        there = tmp_path / "usual" / path.relative_to(tmp_path / "out")
        assert path.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("document", [small_config(), dspark_config()], ids=["mtp", "dspark"])
def test_a_nodes_draft_folder_holds_only_the_draft_in_original_names(document: Any, tmp_path: Path) -> None:
    dspark = "dspark_target_layer_ids" in document
    source = (write_dspark if dspark else write_checkpoint)(tmp_path / "model", document, seed=3)
    draft = "dspark" if dspark else "mtp"
    dsv4_shard.reshard(source, tmp_path / "out", tp=4, engine="node", nodes=2, draft=draft)
    dsv4_shard.reshard(source, tmp_path / "usual", tp=4, engine="node", nodes=2)
    assert dsv4_shard.verify(tmp_path / "out", against=source).ok
    for node in ("node-0", "node-1"):
        usual = index_of(tmp_path / "usual" / node)
        target, drafted = index_of(tmp_path / "out" / node), index_of(tmp_path / "out" / node / "draft")
        assert {name for name in usual if name.startswith("mtp.")} == drafted.keys()
        assert target.keys() == usual.keys() - drafted.keys()
        assert (tmp_path / "out" / node / "draft" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    dsv4_shard.merge(tmp_path / "out", tmp_path / "merged")
    assert index_of(tmp_path / "merged").keys() == index_of(source).keys()


def index_of(folder: Path) -> dict[str, str]:
    """The weight map of a folder, whose files must be there."""
    weights: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {path.name for path in folder.glob("*.safetensors")} == set(weights.values())
    return weights


def test_a_nodes_command_names_the_draft_in_its_own_folder() -> None:
    plan = planned(FLASH_0731, engine="node", tp=8, nodes=2, draft="dspark")
    for node, command in enumerate(plan.launch.commands):
        words = shlex.split(command)
        folder = words[words.index("--model-path") + 1]
        assert folder.endswith(f"/node-{node}")
        assert words[words.index("--speculative-draft-model-path") + 1] == f"{folder}/draft"
    assert f"{plan.out}/node-$NODE_RANK/draft" in plan.launch.on_every_node[0]


def test_a_search_counts_the_draft_as_a_plan_does() -> None:
    checkpoint, inventory = inventory_of(FLASH_0731)
    found = search(checkpoint, inventory, Request(8, gpu="h200", draft="dspark"), ("sglang",))
    plan = planned(FLASH_0731, draft="dspark")
    assert plan.memory is not None
    assert plan.memory.weights in {layout.weight_bytes for layout in found.layouts}
