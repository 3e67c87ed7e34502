"""Drafts in another format than the target: the target is planned and written, the draft planned alone and named."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.full_size import PRO, V3, V32, V41, Tensors, in_memory, inventory_of, to_fp8_experts
from support.checkpoints.other_exports import EXPORTS, exported
from support.checkpoints.small import small_config
from support.reports import MADE

import dsv4_shard
from dsv4_shard.checkpoint.findings import Severity
from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of, write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.engines.registry import ENGINES
from dsv4_shard.models.roles import Stage
from dsv4_shard.opening import open_checkpoint
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reporting.page import to_html
from dsv4_shard.reporting.report import make_report

FP4 = tensors_of(DEMO_CONFIG)
FP8 = to_fp8_experts(FP4)


def mixed(target: Tensors, draft: Tensors, experts: str) -> tuple[Checkpoint, Inventory]:
    tensors = {name: (draft if name.startswith("mtp.") else target)[name] for name in target}
    checkpoint = in_memory(DEMO_CONFIG | {"expert_dtype": experts}, tensors)
    return checkpoint, take_inventory(checkpoint)


FP8_WITH_FP4 = mixed(FP8, FP4, "fp8")
FP4_WITH_FP8 = mixed(FP4, FP8, "fp4")


def planned(opened: tuple[Checkpoint, Inventory], engine: str, **options: Any) -> Plan:
    return make_plan(*opened, Request(2, engine=engine, **options))


@pytest.mark.parametrize("opened", [FP8_WITH_FP4, FP4_WITH_FP8], ids=["fp8-fp4", "fp4-fp8"])
def test_the_difference_is_one_warning(opened: tuple[Checkpoint, Inventory]) -> None:
    (finding,) = opened[1].findings
    assert (finding.severity, finding.code) == (Severity.WARNING, "mtp-format")
    assert "routed_expert.gate, routed_expert.up, routed_expert.down are" in finding.message


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize(("opened", "alone"), [(FP8_WITH_FP4, FP4), (FP4_WITH_FP8, FP8)], ids=["fp8-fp4", "fp4-fp8"])
def test_the_target_is_planned_as_without_its_draft(
    engine: str, opened: tuple[Checkpoint, Inventory], alone: Tensors
) -> None:
    checkpoint, _ = opened
    target = {
        name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors.items() if not name.startswith("mtp.")
    }
    bare = in_memory(checkpoint.document | {"num_nextn_predict_layers": 0}, target)
    plan, without = planned(opened, engine), planned((bare, take_inventory(bare)), engine)
    assert plan.feasible
    assert plan.totals == without.totals
    assert plan.launch == without.launch
    assert plan.launch.draft_options == ""
    (note,) = [choice for choice in plan.notes if "draft is planned separately" in choice]
    assert "It is left out, and the target drafts nothing" in note
    whole = in_memory(DEMO_CONFIG, alone)
    (runner,) = {planned((whole, take_inventory(whole)), engine).deployment.runner}
    assert note.endswith(f"per GPU with runner {runner}")


def test_the_reference_casts_a_draft_to_the_targets_fp8_and_is_not_verified_otherwise() -> None:
    cast = planned(FP8_WITH_FP4, "reference")
    assert cast.feasible
    assert {row.rank_dtype for row in cast.modules if row.module == "routed experts"} == {"F8_E4M3"}
    assert any("It is cast as the target" in choice for choice in cast.notes)
    other = planned(FP4_WITH_FP8, "reference")
    assert [breach.rule for breach in other.breaches] == ["draft-format"]
    assert other.breaches[0].unknown


def test_node_folders_hold_the_draft_as_it_is_stored() -> None:
    plan = planned(FP8_WITH_FP4, "node", nodes=2)
    assert any("It stays as it is stored" in choice for choice in plan.notes)


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_rank_files_hold_the_target_alone_and_are_verified(engine: str, tmp_path: Path) -> None:
    document = small_config(expert_dtype="fp8")
    source = write_mixed(tmp_path / "model", document)
    _, inventory = open_checkpoint(str(source))
    assert inventory.mtp_blocks == 1
    dsv4_shard.reshard(source, tmp_path / "out", tp=2, engine=engine, gpu="h200")
    assert not (tmp_path / "out" / "draft").exists()
    assert dsv4_shard.verify(tmp_path / "out", against=source).ok
    assert any(group.stage is Stage.MTP for group in inventory.groups)


UNKNOWN = {
    "INT8 of ModelSlim": EXPORTS["ModelSlim"],
    "INT8 of compressed-tensors": EXPORTS["compressed-tensors INT8"],
}


@pytest.mark.parametrize("form", UNKNOWN)
def test_a_draft_of_an_unknown_format_keeps_no_target_from_being_planned(form: str) -> None:
    odd = exported(FP4, UNKNOWN[form])
    tensors = {name: tensor for name, tensor in FP4.items() if not name.startswith("mtp.")}
    tensors |= {name: tensor for name, tensor in odd.items() if name.startswith("mtp.")}
    checkpoint = in_memory(DEMO_CONFIG, tensors)
    inventory = take_inventory(checkpoint)
    assert inventory.errors == ()
    assert [(one.severity, one.code) for one in inventory.findings] == [(Severity.WARNING, "mtp-format")]
    for engine in ("sglang", "vllm"):
        plan = make_plan(checkpoint, inventory, Request(2, engine=engine))
        assert plan.feasible
        (note,) = [choice for choice in plan.notes if "draft is planned separately" in choice]
        assert "a format that is not known" in note
        assert note.endswith("It is left out, and the target drafts nothing; alone, it is not planned")
    for engine in ("reference", "node"):
        plan = make_plan(checkpoint, inventory, Request(2, engine=engine, nodes=2))
        (breach,) = [breach for breach in plan.breaches if breach.rule == "draft-format"]
        ways = [f"--engine {name}, whose files hold the target alone" for name in ("sglang", "vllm")]
        assert list(breach.remedies) == (ways if engine == "node" else [])


def test_damage_to_a_draft_stays_an_error() -> None:
    for name in ("mtp.0.attn.wq_a.weight", "mtp.0.ffn.experts.3.w1.scale"):
        inventory = take_inventory(in_memory(DEMO_CONFIG, {key: FP4[key] for key in FP4 if key != name}))
        assert inventory.errors
    shape = {"mtp.0.attn.wq_a.weight": ("F8_E4M3", (1, 1))}
    assert take_inventory(in_memory(DEMO_CONFIG, FP4 | shape)).errors


def write_mixed(folder: Path, document: dict[str, Any]) -> Path:
    """Write a checkpoint with FP8 experts in the layers, and FP4 experts in the MTP block."""
    fp8 = write_checkpoint(folder, document, seed=5, experts="FP8")
    fp4 = write_checkpoint(folder.parent / "fp4", document, seed=6, experts="FP4")
    for file in folder.glob("*.safetensors"):
        raw = (fp4 / file.name).read_bytes()
        if b'"mtp.' in raw[:200]:
            file.write_bytes(raw)
    return fp8


# --- a draft is named only where the files hold it, and a family has its own words alone ------------------------------

OF_DRAFTS = re.compile(r"(?i)\b(?:mtp|dspark|speculative|draft)\b")

OF_V4 = re.compile(r"(?i)\bfp4\b|\bhash\b|dspark|engram|compressor|wo_a|o_groups")


def without_its_draft(model: str) -> tuple[Checkpoint, Inventory]:
    """A release as some tools export it: config.json still counts the blocks, and the files have none."""
    checkpoint, inventory = inventory_of(model)
    kept = {name: one for name, one in checkpoint.tensors.items() if inventory.names[name].stage is not Stage.MTP}
    bare = replace(checkpoint, tensors=kept)
    return bare, take_inventory(bare)


def said_by(plan: Plan) -> Iterator[str]:
    """What a plan says of its layout: its sentences, the commands and the modules."""
    yield from (*plan.notes, *plan.assumptions, *map(str, (*plan.losses, *plan.changes, *plan.breaches)))
    yield from (module.role for module in plan.modules)
    for way in plan.ways:
        yield from (*way.launch.commands, way.launch.draft_options)


@pytest.mark.parametrize("model", [PRO, V3, V41])
def test_no_draft_is_named_where_the_files_hold_none(model: str) -> None:
    checkpoint, inventory = without_its_draft(model)
    for engine, nodes in itertools.product(ENGINES, (None, 2)):
        plan = make_plan(checkpoint, inventory, Request(8, engine=engine, nodes=nodes), "REPO")
        assert [words for words in said_by(plan) if OF_DRAFTS.search(words)] == [], engine


@pytest.mark.parametrize("model", [PRO, V3])
def test_a_draft_is_named_where_the_files_hold_one(model: str) -> None:
    plan = make_plan(*inventory_of(model), Request(8, engine="vllm"), "REPO")
    assert "--speculative-config" in plan.launch.draft_options


@pytest.mark.parametrize("model", [V3, V32])
def test_no_words_of_v4_are_said_of_v3(model: str) -> None:
    for engine, tp in itertools.product(ENGINES, (8, 24)):
        plan = make_plan(*inventory_of(model), Request(tp, engine=engine), "REPO")
        assert [words for words in said_by(plan) if OF_V4.search(words)] == [], engine
    page = to_html(make_report(*inventory_of(model), plan), MADE)
    prose = re.sub(r"(?s)<(?:style|script)\b.*?</(?:style|script)>|<[^>]*>", " ", page)
    assert OF_V4.findall(prose) == []
