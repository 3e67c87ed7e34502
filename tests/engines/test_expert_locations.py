"""Redundant experts and maps of experts: which rank holds which, and what is refused.

`tests/data/oracles/sglang` has the bytes that SGLang's own loader puts into the slots.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.full_size import PRO, inventory_of

from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.expert_locations import IDENTITY, name_of, parse_locations
from dsv4_shard.engines.expert_places import places_of
from dsv4_shard.engines.registry import find_engine
from dsv4_shard.errors import UsageError
from dsv4_shard.models.roles import Stage
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan

LAYERS, EXPERTS = 61, 384


def plan_of(**wanted: Any) -> Plan:
    return make_plan(*inventory_of(PRO), Request(**wanted), PRO)


def context_of(**wanted: Any) -> Context:
    inventory = inventory_of(PRO)[1]
    return Context(inventory, next(find_engine("sglang").candidates(inventory, Request(**wanted))))


def saved(path: Path, rows: list[list[int]]) -> str:
    path.write_text(json.dumps({"physical_to_logical_map": rows}))
    return str(path)


@pytest.fixture
def reversed_map(tmp_path: Path) -> str:
    return saved(tmp_path / "reversed.json", [list(reversed(range(EXPERTS)))] * LAYERS)


def test_forty_gpus_hold_ten_slots_each_with_sixteen_redundant_experts() -> None:
    asked = {"tp": 40, "dp": 40, "a2a": "megamoe", "gpu": "gb300"}
    plan = plan_of(**asked, redundant_experts=16)
    down = next(row for row in plan.modules if row.module == "routed experts" and row.part_of == "target")
    assert plan.layout == "sglang"
    assert down.tensors_per_rank == LAYERS * 10 * 2
    assert plan.launch.program.options["--ep-num-redundant-experts"] == "16"
    assert any("its 384 do not divide by EP 40" in str(loss) for loss in plan.losses)
    (breach,) = plan_of(**asked).breaches
    assert breach.rule == "experts"
    assert "redundant experts, so that the slots divide by EP: --redundant-experts 16" in breach.remedies


def test_redundant_slots_hold_the_first_experts_again() -> None:
    places = places_of(context_of(tp=16, ep=16, redundant_experts=16), Stage.LAYER, 5)
    assert places.experts[15] == (*range(375, 384), *range(16))
    assert places.holders[3] == (0, 15)
    assert places.slots[15][3] == (12,)


def test_a_draft_has_neither_redundant_experts_nor_a_map(reversed_map: str) -> None:
    context = context_of(tp=16, ep=16, expert_locations=reversed_map)
    assert places_of(context, Stage.MTP, 0).experts[1] == tuple(range(24, 48))
    context = context_of(tp=16, ep=16, redundant_experts=16)
    assert places_of(context, Stage.MTP, 0).experts[1] == tuple(range(24, 48))


def test_slot_s_of_ep_rank_b_holds_what_the_map_says(reversed_map: str) -> None:
    places = places_of(context_of(tp=16, ep=8, expert_locations=reversed_map), Stage.LAYER, 60)
    assert [places.experts[b][s] for b, s in ((0, 0), (0, 47), (7, 47))] == [383, 336, 0]


def test_the_map_names_plan_and_files(reversed_map: str, tmp_path: Path) -> None:
    plan, plain = plan_of(tp=8, ep=8, expert_locations=reversed_map), plan_of(tp=8, ep=8)
    name = plan.deployment.expert_locations
    assert name.startswith("expert 383 in slot 0 of layer 0, SHA-256 ")
    assert plain.deployment.expert_locations == IDENTITY
    assert plan.out == f"{plain.out}-map-{name[-32:-24]}"
    assert plan.launch.program.options["--init-expert-location"] == reversed_map
    in_order = saved(tmp_path / "order.json", [list(range(EXPERTS))] * LAYERS)
    assert plan_of(tp=8, ep=8, expert_locations=in_order).deployment.expert_locations == IDENTITY
    assert plan_of(tp=8, ep=8, expert_locations="trivial").deployment.expert_locations == IDENTITY


def test_two_maps_have_two_names() -> None:
    assert name_of([[0, 1, 2, 0, 1]]) == IDENTITY
    assert name_of([[1, 0, 2], [0, 1, 2]]) != name_of([[1, 0, 2], [0, 2, 1]])


@pytest.mark.parametrize(
    ("rows", "redundant", "why"),
    [
        ([list(range(EXPERTS))] * 60, 0, "it has 60 layers, the model 61"),
        ([[*range(EXPERTS), 0]] * LAYERS, 0, "layer 0 has 385 slots, and there are 384 experts and 0 redundant"),
        ([list(range(EXPERTS))] * LAYERS, 8, "layer 0 has 384 slots, and there are 384 experts and 8 redundant"),
        ([[0, *range(EXPERTS - 1)]] * LAYERS, 0, "expert 383 is in no slot of layer 0"),
        ([[*range(EXPERTS), *[400] * 8]] * LAYERS, 8, "layer 0 has expert 400, and the model 384 from 0"),
    ],
)
def test_a_map_for_another_model_is_refused(rows: list[list[int]], redundant: int, why: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "map.json", rows)
    (breach, *_) = plan_of(tp=8, ep=8, expert_locations=path, redundant_experts=redundant).breaches
    assert (breach.rule, breach.reason) == ("expert-locations", f"the map of --expert-locations: {why}")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"[]", "no physical_to_logical_map"),
        (b'{"logical_count": [[1, 2]]}', "no physical_to_logical_map"),
        (b'{"physical_to_logical_map": []}', "no physical_to_logical_map"),
        (b'{"physical_to_logical_map": [[0, -1]]}', "no physical_to_logical_map"),
        (b'{"physical_to_logical_map": [[0, true]]}', "no physical_to_logical_map"),
        (b"{", "not JSON"),
    ],
)
def test_a_file_without_a_map_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_locations(raw, "map.json")


@pytest.mark.parametrize(("name", "why"), [("none.json", "cannot be read: No such file"), ("map.pt", "write its map")])
def test_a_file_that_cannot_be_read_is_refused(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "map.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match=why):
        plan_of(tp=8, expert_locations=str(tmp_path / name))


@pytest.mark.parametrize("wanted", [{"redundant_experts": 8}, {"expert_locations": "map"}])
def test_node_folders_are_for_experts_in_order(wanted: dict[str, Any], reversed_map: str) -> None:
    asked = wanted if "redundant_experts" in wanted else {"expert_locations": reversed_map}
    plan = plan_of(tp=16, nodes=2, engine="node", **asked)
    assert plan.breaches[0].rule == "node-places"
