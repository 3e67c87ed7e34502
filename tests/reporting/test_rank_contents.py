"""What ranks hold, by layer and by kind: the same bytes as the plan's, which add up over layers."""

import pytest
from support.checkpoints.full_size import PRO, inventory_of
from support.reports import LAYOUTS, RUNNING

from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.models.roles import TARGET, Module
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.weights import loads, weights_of
from dsv4_shard.reporting.rank_contents import Holding, LayerMap, layer_map, rank_bytes


def context_of(model: str, request: Request) -> tuple[Checkpoint, Engine, Context]:
    checkpoint, inventory = inventory_of(model)
    engine = engine_for(request.engine, inventory.family)
    return checkpoint, engine, Context(inventory, choose(inventory, request).deployment)


def map_of(model: str, request: Request, broken: frozenset[Module] = frozenset()) -> LayerMap:
    return layer_map(*context_of(model, request), broken)


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
        if deployment.world > 1:
            assert ranks[0].whole == plan.totals.replicated_bytes_per_rank
    if plan.memory is not None:
        assert min(rank.free for rank in ranks if rank.free is not None) == plan.memory.left


@pytest.mark.slow
@pytest.mark.parametrize(("model", "request_"), RUNNING)
def test_the_cells_of_the_map_add_up_to_what_the_heaviest_rank_loads(model: str, request_: Request) -> None:
    drawn = map_of(model, request_)
    _, engine, context = context_of(model, request_)
    weights = list(loads(engine, context))
    draft = [at for at, row in enumerate(drawn.rows) if row.is_draft]
    for is_draft in (False, True):
        due = sum(one.stored.nbytes * one.per_rank[1] for one in weights if (one.group.stage not in TARGET) is is_draft)
        assert sum(cell.nbytes for cell in drawn.cells if (cell.row in draft) is is_draft) == due


@pytest.mark.slow
def test_the_map_of_v4_pro_has_every_layer_and_what_only_some_layers_have() -> None:
    drawn = map_of(PRO, Request(16))
    assert tuple(row.title for row in drawn.rows) == ("model", *map(str, range(61)), "MTP 0")
    indexer = [number for number, column in enumerate(drawn.columns) if column.module is Module.INDEXER]
    rows = {cell.row for cell in drawn.cells if cell.column in indexer}
    config = inventory_of(PRO)[1].config
    assert {drawn.rows[row].number for row in rows} == {
        layer
        for layer, ratio in enumerate(config.compress_ratios[:61])  # type: ignore[attr-defined]
        if ratio == 4
    }
    shared = [column for column in drawn.columns if column.module is Module.SHARED]
    assert [column.kind for column in shared] == [Holding.WHOLE]


@pytest.mark.slow
def test_one_module_placed_in_two_ways_is_two_columns() -> None:
    kinds = {column.kind for column in map_of(PRO, Request(16)).columns if column.module is Module.ATTENTION}
    assert kinds == {Holding.SPLIT, Holding.WHOLE}


@pytest.mark.slow
def test_a_module_whose_rule_breaks_is_drawn_as_broken_and_the_others_as_placed() -> None:
    request = Request(16, shared_experts="split")
    choice = choose(inventory_of(PRO)[1], request)
    broken = frozenset(breach.module for breach in choice.breaches)
    assert broken == {Module.SHARED, Module.ROUTED}
    drawn = map_of(PRO, request, broken)
    assert {column.module for column in drawn.columns if column.kind is Holding.BREAKS} == broken
    assert not any(cell.nbytes for cell in drawn.cells if drawn.columns[cell.column].kind is Holding.BREAKS)
    assert any(column.kind is Holding.SPLIT for column in drawn.columns)


def test_where_experts_do_not_fall_evenly_the_first_ranks_hold_one_more() -> None:
    ranks = rank_bytes(*context_of(PRO, Request(1, dp=5, ep=5, engine="vllm")))
    assert [(rank.first, rank.last) for rank in ranks] == [(0, 3), (4, 4)]  # 384 = 4 × 77 + 76
    assert ranks[0].experts * 76 == ranks[1].experts * 77
