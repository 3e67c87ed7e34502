"""What ranks hold, by layer and by kind: the same bytes as the plan's, which add up over layers."""

import pytest
from support.checkpoints.full_size import PRO, inventory_of
from support.reports import LAYOUTS, RUNNING

from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.models.roles import TARGET, Stage
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.weights import loads, weights_of
from dsv4_shard.reporting.colours import DRAFT, kind_of
from dsv4_shard.reporting.rank_contents import layer_bytes, rank_bytes


def context_of(model: str, request: Request) -> tuple[Checkpoint, Engine, Context]:
    checkpoint, inventory = inventory_of(model)
    engine = engine_for(request.engine, inventory.family)
    return checkpoint, engine, Context(inventory, choose(inventory, request).deployment)


@pytest.mark.parametrize(("model", "request_"), LAYOUTS)
def test_the_layouts_that_run_are_known(model: str, request_: Request) -> None:
    assert choose(inventory_of(model)[1], request_).feasible == ((model, request_) in RUNNING)


def test_the_layouts_are_of_all_engines() -> None:
    assert {request.engine for _, request in RUNNING} == {"sglang", "vllm", "reference", "trtllm", "node"}


@pytest.mark.parametrize(("model", "request_"), RUNNING)
def test_the_kinds_of_a_ranks_bytes_add_up_to_the_plans(model: str, request_: Request) -> None:
    checkpoint, inventory = inventory_of(model)
    plan = make_plan(checkpoint, inventory, request_)
    assert plan.totals is not None
    ranks = rank_bytes(*context_of(model, request_))
    deployment = choose(inventory, request_).deployment
    assert max(rank.weights for rank in ranks) == weights_of(plan.totals, deployment)
    assert [rank.first for rank in ranks] == [0, *(rank.last + 1 for rank in ranks[:-1])]
    assert ranks[-1].last == deployment.world - 1
    if deployment.engine != "reference":
        assert min(rank.weights for rank in ranks) == plan.totals.target_bytes_per_rank_min
        assert max(rank.padding for rank in ranks) == plan.totals.padding_bytes_per_rank
    for kind in {kind_of(row.module) for row in plan.modules}:
        rows = [row for row in plan.modules if row.part_of == "target" and kind_of(row.module) == kind]
        due = sum(row.bytes_per_rank - row.padding_per_rank for row in rows)
        assert ranks[0].kinds.get(kind, 0) == due + (plan.totals.other_target_bytes_per_rank if kind == "rest" else 0)
    if plan.memory is not None:
        assert min(rank.free for rank in ranks if rank.free is not None) == plan.memory.left


@pytest.mark.slow
@pytest.mark.parametrize(("model", "request_"), RUNNING)
def test_the_layers_add_up_to_what_the_heaviest_rank_loads(model: str, request_: Request) -> None:
    checkpoint, engine, context = context_of(model, request_)
    layers, weights = layer_bytes(checkpoint, engine, context), list(loads(engine, context))
    for is_draft in (False, True):
        due = sum(one.stored.nbytes * one.per_rank[1] for one in weights if (one.group.stage not in TARGET) is is_draft)
        assert sum(sum(layer.kinds.values()) for layer in layers if layer.row.is_draft is is_draft) == due
    assert all(set(layer.kinds) == {DRAFT} for layer in layers if layer.row.is_draft)


@pytest.mark.slow
def test_v4_pro_has_all_layers_and_only_some_have_an_indexer() -> None:
    _, inventory = inventory_of(PRO)
    layers = layer_bytes(*context_of(PRO, Request(16)))
    assert tuple(layer.row.title for layer in layers) == ("model", *map(str, range(61)), "MTP 0")
    by_attention = {layer.row.layer: layer.kinds["attention"] for layer in layers if layer.row.stage is Stage.LAYER}
    ratios = inventory.config.compress_ratios[:61]  # type: ignore[attr-defined]
    with_indexer = {layer for layer, ratio in enumerate(ratios) if ratio == 4}
    assert min(by_attention[layer] for layer in with_indexer) > max(
        nbytes for layer, nbytes in by_attention.items() if layer not in with_indexer
    )


def test_where_experts_do_not_fall_evenly_the_first_ranks_hold_one_more() -> None:
    ranks = rank_bytes(*context_of(PRO, Request(1, dp=5, ep=5, engine="vllm")))
    assert [(rank.first, rank.last) for rank in ranks] == [(0, 3), (4, 4)]  # 384 = 4 × 77 + 76
    assert ranks[0].kinds["routed"] * 76 == ranks[1].kinds["routed"] * 77
