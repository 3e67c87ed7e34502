"""Disk and host memory of a node: compared with the files that are written, and with sizes that are known."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support import documents
from support.checkpoints.full_size import PRO, V41, inventory_of

import dsv4_shard
from dsv4_shard.engines import Context, Request, find_engine
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.memory_documents import PlanHost
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reporting import make_report
from dsv4_shard.sharding.reading import landings_in
from dsv4_shard.sharding.recipe import spans
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.terminal.screens.plan import show_plan


def planned(model: str, **wanted: Any) -> Plan:
    return make_plan(*inventory_of(model), Request(**wanted), model)


def host_of(model: str, **wanted: Any) -> PlanHost:
    host = planned(model, **wanted).host
    assert host is not None
    return host


def test_sglang_maps_ten_files_of_a_checkpoint_at_once() -> None:
    checkpoint = inventory_of(PRO)[0]
    host = host_of(PRO, tp=16, engine="node")
    assert host.window_bytes == 10 * max(file.nbytes for file in checkpoint.files)
    assert host.checkpoint_bytes == sum(file.nbytes for file in checkpoint.files)


def test_shards_are_mapped_a_tensor_at_a_time_on_each_rank() -> None:
    plan = planned(PRO, tp=16, gpu="h20-96")
    assert plan.host is not None
    assert plan.totals is not None
    assert plan.host.reads == "shards"
    own = plan.totals.target_bytes_per_rank_max + plan.totals.draft_bytes_per_rank
    assert 8 * own - plan.host.disk_bytes >= 7 * plan.totals.replicated_bytes_per_rank  # one file under eight names
    assert 8 * (128 << 20) > plan.host.window_bytes / 8 > 0


def test_engram_tables_are_pinned_by_vllm_and_not_by_sglang() -> None:
    """196.61 + 6.14 GB; config/engram.py has cpu_offload on by default."""
    host = host_of(V41, tp=4, engine="vllm", gpu="h20-96")
    assert host.pinned_bytes / 1e9 == pytest.approx(202.75, abs=0.01)
    assert host.disk_bytes / 1e9 == pytest.approx(510.3, abs=0.1)
    assert host_of(V41, tp=4, gpu="h20-96").pinned_bytes == 0


def test_a_node_pins_the_tables_of_its_own_tp_ranks() -> None:
    whole, half = (host_of(V41, tp=8, engine="vllm", nodes=nodes).pinned_bytes for nodes in (1, 2))
    assert half * 2 == whole
    assert host_of(V41, tp=4, dp=2, engine="vllm", nodes=2).pinned_bytes == whole


def test_engines_without_a_known_loader_say_nothing() -> None:
    assert planned(PRO, tp=8, engine="trtllm").host is None


def test_the_plan_says_it_in_one_line_also_where_the_layout_is_not_verified() -> None:
    out = StringIO()
    show_plan(Console(file=out, width=400), planned(V41, tp=4, engine="vllm", gpu="h20-96"), "vLLM")
    assert "188.8 GiB of host memory stay pinned on each node: engram tables" in out.getvalue()


def test_the_report_has_it() -> None:
    checkpoint, inventory = inventory_of(PRO)
    page = make_report(checkpoint, inventory, planned(PRO, tp=16, gpu="h20-96"), None).to_html()
    assert "Disk per node" in page
    assert "438.32 GB" in page


@pytest.mark.parametrize(("engine", "nodes"), [("sglang", 1), ("reference", 1), ("node", 2)])
def test_disk_is_that_of_the_files_that_are_written(engine: str, nodes: int, tmp_path: Path) -> None:
    documents.checkpoint(tmp_path)
    wanted: dict[str, Any] = {"tp": 2, "ep": 2, "engine": engine, "nodes": nodes}
    plan = dsv4_shard.plan(tmp_path / "model", **wanted)
    dsv4_shard.reshard(tmp_path / "model", tmp_path / "out", **wanted)
    folder = tmp_path / "out/node-0" if nodes > 1 else tmp_path / "out"
    files = {stat.st_ino: stat.st_size for stat in map(Path.stat, folder.rglob("*.safetensors"))}
    written = sum(files.values())
    assert plan.host is not None
    assert plan.host.disk_bytes == pytest.approx(written, rel=0.05)


@pytest.mark.parametrize(
    "wanted",
    [
        {"tp": 16, "gpu": "h20-96"},
        {"tp": 16, "ep": 16, "gpu": "h20-96"},
        {"tp": 16, "ep": 4, "dp": 4, "gpu": "h200"},
        {"tp": 8, "gpu": "h200"},
        {"tp": 16, "nodes": 4, "gpu": "h200"},
        {"tp": 16, "gpu": "h20-96", "engine": "vllm"},
        {"tp": 8, "dp": 5, "ep": 40, "gpu": "h200", "engine": "vllm"},
        {"tp": 8, "pp": 2, "gpu": "h200", "engine": "vllm"},
    ],
)
def test_a_node_that_loads_by_plan_reads_what_the_recipe_of_its_ranks_reads(wanted: dict[str, Any]) -> None:
    checkpoint, inventory = inventory_of(PRO)
    request = Request(**wanted)
    plan = make_plan(checkpoint, inventory, request, PRO)
    [way] = [way for way in plan.ways if way.serves == "checkpoint by plan"]
    ranks = range(plan.deployment.world // plan.deployment.nodes)
    recipe = make_recipe(
        checkpoint, find_engine(request.engine), Context(inventory, choose(inventory, request).deployment), tuple(ranks)
    )
    target = [number for number, file in enumerate(recipe.files) if "/" not in file.name]
    steps = [replace(step, landings=tuple(landings_in(step, target))) for step in recipe.steps]
    read = sum(span.stop - span.start for some in spans(one for one in steps if one.landings) for span in some)
    assert way.node_bytes == pytest.approx(read, rel=0.001)
    assert way.node_bytes < plan.ways[0].node_bytes
