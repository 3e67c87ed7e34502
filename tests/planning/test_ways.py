"""The ways to serve: loading by plan in both engines, and vLLM's own other loaders with the bytes that a node reads."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.checkpoints.full_size import FLASH, PRO, V3, inventory_of
from support.paths import DATA

import dsv4_shard
from conformance.tiny import write_variant
from dsv4_shard.engines import Request
from dsv4_shard.loading.options import LoadOptions
from dsv4_shard.planning import PlanLoader, PlanWay
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reporting import make_report
from dsv4_shard.terminal.screens.plan import show_plan

FILTERED: list[dict[str, Any]] = json.loads((DATA / "vllm/ep_weight_filter.json").read_text())["cases"]
"""Bytes that vLLM's own functions skip, by the names of all tensors."""


def planned(model: str = FLASH, **wanted: Any) -> Plan:
    asked: dict[str, Any] = {"tp": 8, "gpu": "h200", "engine": "vllm"} | wanted
    return make_plan(*inventory_of(model), Request(**asked), model)


def by_plan(plan: Plan) -> PlanWay:
    [way] = [way for way in plan.ways if way.serves == "checkpoint by plan"]
    return way


def loaders_of(plan: Plan) -> dict[str, PlanLoader]:
    return {way.serves: loader for way in plan.ways for loader in way.loaders}


# --- by plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_the_command_has_the_options_that_the_plugin_reads(engine: str) -> None:
    launch = by_plan(planned(engine=engine)).launch
    assert launch.needs_plugin
    assert launch.program is not None
    assert launch.program.options["--load-format"] == "dsv4_shard"
    options = launch.program.options["--model-loader-extra-config"]
    assert options is not None
    assert str(LoadOptions.of(json.loads(options.strip("'"))).plan) == "plan.json"


@pytest.mark.parametrize("wanted", [{"engine_version": "0.25.0"}, {"draft": "mtp"}])
def test_vllm_has_no_such_way_without_the_plugin_or_with_a_draft(wanted: dict[str, Any]) -> None:
    plan = planned(**wanted)
    assert [way.serves for way in plan.ways] == ["checkpoint", "shards"]


def test_vllm_loads_a_draft_beside_it_with_its_own_loader() -> None:
    """vLLM's plugin refuses drafts by plan, and names this option."""
    assert '"draft_load_config": {"load_format": "auto"}' in by_plan(planned()).launch.draft_options
    assert "draft_load_config" not in by_plan(planned(engine="sglang")).launch.draft_options


def test_vllm_loads_no_draft_beside_it_that_its_own_loader_misreads(tmp_path: Path) -> None:
    plan = dsv4_shard.plan(write_variant(tmp_path / "model", "fp8e8"), tp=2, engine="vllm")
    assert [way.serves for way in plan.ways] == ["checkpoint by plan", "shards"]
    assert by_plan(plan).launch.draft_options == ""
    assert plan.ways[-1].launch.draft_options


# --- vLLM's own other loaders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FILTERED, ids=lambda case: f"{case['model']}-{case['ep']}")
def test_the_filter_of_experts_skips_the_bytes_that_vllm_skips_on_the_fullest_node(case: dict[str, Any]) -> None:
    tp = 8 if case["ep"] % 16 or case["model"] == FLASH else 16
    plan = planned(case["model"], tp=tp, dp=case["ep"] // tp, ep=case["ep"], nodes=case["nodes"])
    assert plan.ways[0].serves == "checkpoint"
    [loader] = plan.ways[0].loaders
    assert plan.ways[0].node_bytes - loader.node_bytes == case["skipped"]
    assert loader.settings == "--enable-ep-weight-filter --safetensors-load-strategy lazy"


def test_the_run_ai_streamer_reads_what_ranks_share_once_for_each_rank() -> None:
    plan = planned()
    assert plan.totals is not None
    loader = loaders_of(plan)["shards"]
    assert (loader.settings, loader.package) == ("--load-format runai_streamer_sharded", "runai-model-streamer")
    assert loader.node_bytes == 8 * plan.totals.target_bytes_per_rank_max
    assert loader.node_bytes - plan.ways[-1].node_bytes == 7 * plan.totals.replicated_bytes_per_rank


@pytest.mark.parametrize(
    ("model", "wanted", "served"),
    [
        (FLASH, {}, {"shards"}),
        (FLASH, {"ep": 8}, {"shards"}),
        (PRO, {"tp": 16, "ep": 16}, {"checkpoint", "shards"}),
        (PRO, {"tp": 8, "dp": 2, "ep": 16}, {"checkpoint"}),
        (PRO, {"tp": 8, "pp": 2}, {"shards"}),
        (FLASH, {"ep": 8, "gpu": "b200", "runner": "deep_gemm_mega_moe"}, set()),
        (FLASH, {"engine_version": "0.25.0"}, set()),
        (V3, {"tp": 16, "ep": 16}, {"checkpoint"}),
        (PRO, {"tp": 16, "ep": 16, "engine": "sglang"}, set()),
        (PRO, {"tp": 16, "engine": "node"}, set()),
    ],
)
def test_loaders_are_named_where_vllm_applies_them(model: str, wanted: dict[str, Any], served: set[str]) -> None:
    plan = planned(model, **wanted)
    assert plan.feasible
    assert loaders_of(plan).keys() == served


def test_details_and_the_page_show_them_and_the_first_screen_does_not() -> None:
    plan = planned(PRO, tp=16, ep=16)
    out, details = StringIO(), StringIO()
    show_plan(Console(file=out, width=300), plan, "vLLM")
    show_plan(Console(file=details, width=300), plan, "vLLM", details=True)
    page = make_report(*inventory_of(PRO), plan, None).to_html()
    for loader in loaders_of(plan).values():
        assert loader.settings not in out.getvalue()
        for text in (loader.settings, loader.package or "", loader.words):
            assert text in details.getvalue()
        assert "<span>" + "</span> <span>".join(loader.settings.split()) + "</span>" in page
