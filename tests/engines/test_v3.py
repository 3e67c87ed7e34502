"""SGLang's and vLLM's rules and placements for V3 and V3.2, compared with their own verdicts and parameters.

What the engines said and declared is in `data/sglang/v3.json` and `data/vllm/v3.json`; `tools/derive_contracts.py` made
it from their own runs, with the first four layers of the real models.
"""

import json
from collections import Counter
from functools import cache
from typing import Any

import pytest
from support.checkpoints.full_size import V3, V32, V41, config_of, in_memory, inventory_of
from support.checkpoints.skeletons import DATA
from support.checkpoints.small import SMALL_V3
from support.module_bytes import bytes_by_module, without_shared_tables

from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.synthetic import tensors_of
from dsv4_shard.engines.deployment import Context, Deployment, Request
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.errors import UsageError
from dsv4_shard.inspection.known_family import inspect
from dsv4_shard.models.roles import Stage
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare

TARGET = (Stage.MODEL, Stage.LAYER)
MODELS = {"v3": V3, "v32": V32}
GPU_OF_SM = {90: "h200", 100: "b200"}


def attempts(engine: str) -> list[dict[str, Any]]:
    return json.loads((DATA / engine / "v3.json").read_text())


def short(entry: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in entry.items() if key not in ("bytes", "error", "fused"))


@cache
def four_layers(model: str, intermediate_size: int | None) -> Inventory:
    """The model as the engines built it: three dense layers and one with experts."""
    document = config_of(MODELS[model]) | {"num_hidden_layers": 4}
    if intermediate_size:
        document["intermediate_size"] = intermediate_size
    inventory = take_inventory(in_memory(document, tensors_of(document, scales="F32", optional=True)))
    assert inventory.errors == ()
    return inventory


def inventory_for(entry: dict[str, Any]) -> Inventory:
    return four_layers(entry["model"], entry.get("intermediate_size"))


def first_choice(inventory: Inventory, request: Request) -> Deployment:
    return next(engine_for(request.engine, inventory.family).candidates(inventory, request))


def said(inventory: Inventory, request: Request) -> list[str | None]:
    """What the engine says to its first choice, in the order of the rules that break."""
    context = Context(inventory, first_choice(inventory, request))
    breaches = engine_for(request.engine, inventory.family).breaches(context)
    return [breach.quote and " ".join(breach.quote.split()) for breach in breaches]


def together(nbytes: dict[str, int]) -> dict[str, int]:
    """With the shared expert among the routed ones, as it is where SGLang has made it one of them."""
    counts = Counter(nbytes)
    counts["routed experts"] += counts.pop("shared experts", 0)
    return dict(counts)


# --- SGLang --------------------------------------------------------------------------------------------------------

SGLANG = attempts("sglang")
PLANNED = [entry for entry in SGLANG if "dense1" not in entry]


def sglang_request(entry: dict[str, Any]) -> Request:
    whole = entry.get("shared") or entry.get("a2a")
    return Request(
        entry["tp"], ep=entry["ep"], dp=entry.get("dp", 1), a2a=entry.get("a2a"),
        shared_experts="whole" if whole else "split", gpu=GPU_OF_SM[entry["sm"]],
    )  # fmt: skip


@pytest.mark.parametrize("entry", PLANNED, ids=short)
def test_sglang_says_what_it_said_when_it_was_run(entry: dict[str, Any]) -> None:
    quotes = said(inventory_for(entry), sglang_request(entry))
    if entry.get("error") == "AssertionError: ":  # without a message: the traceback shows what was asserted
        assert quotes[0].startswith("assert ")
    elif "error" in entry:
        assert quotes[0] == " ".join(entry["error"].split())
    else:
        assert quotes == []


@pytest.mark.parametrize("entry", [entry for entry in PLANNED if "bytes" in entry], ids=short)
def test_a_rank_of_sglang_holds_the_bytes_that_its_model_declares(entry: dict[str, Any]) -> None:
    inventory = inventory_for(entry)
    at = first_choice(inventory, sglang_request(entry))
    held = bytes_by_module(inventory, at, (Stage.MTP,) if entry.get("nextn") else TARGET)
    declared = without_shared_tables(entry["bytes"]) if entry.get("nextn") else entry["bytes"]
    assert (together(held) if entry["fused"] else held) == declared


@pytest.mark.slow
def test_sglang_takes_the_dense_mlp_whole_where_the_remedy_says_so() -> None:
    tried = [entry for entry in SGLANG if "dense1" in entry]
    assert {entry["tp"] for entry in tried} >= {32, 64}
    assert all("error" not in entry for entry in tried)
    plan = make_plan(*inventory_of(V3), Request(32, ep=32, dp=32, a2a="deepep"))
    assert [breach.rule for breach in plan.breaches] == ["dense-blocks"]
    assert "--moe-dense-tp-size 1" in plan.breaches[0].remedies[0]


@pytest.mark.slow
def test_a_shared_expert_that_is_to_be_whole_is_not_made_a_routed_one() -> None:
    inventory = inventory_of(V3)[1]
    engine = engine_for("sglang", inventory.family)
    for ep, fused in ((None, True), (8, False)):
        at = first_choice(inventory, Request(8, ep=ep, shared_experts="whole"))
        launch = engine.launch(Context(inventory, at), "MODEL", False)
        assert launch.environment == {"SGLANG_SHARED_EXPERT_TP1": "1"}
        assert ("--disable-shared-experts-fusion" in launch.commands[0]) is fused
    split = engine.launch(Context(inventory, first_choice(inventory, Request(8))), "MODEL", False)
    assert (split.environment, "fusion" in split.commands[0]) == ({}, False)


# --- vLLM ----------------------------------------------------------------------------------------------------------

VLLM = attempts("vllm")


def vllm_request(entry: dict[str, Any]) -> Request:
    runner = None if entry["backend_arg"] == "auto" else entry["backend_arg"]
    ep = entry["tp"] if entry["ep"] else 1
    return Request(entry["tp"], ep=ep, engine="vllm", runner=runner, gpu=GPU_OF_SM[entry["sm"]])


@pytest.mark.parametrize("entry", VLLM, ids=short)
def test_vllm_says_what_it_said_when_it_was_run(entry: dict[str, Any]) -> None:
    quotes = said(inventory_for(entry), vllm_request(entry))
    if "error" in entry:
        assert quotes[0] is not None
        assert " ".join(entry["error"].split()).startswith(quotes[0])
    else:
        assert quotes == []


@pytest.mark.parametrize("entry", [entry for entry in VLLM if "bytes" in entry], ids=short)
def test_a_rank_of_vllm_holds_the_bytes_that_its_model_declares(entry: dict[str, Any]) -> None:
    inventory = inventory_for(entry)
    at = first_choice(inventory, vllm_request(entry))
    if entry.get("mtp"):
        assert bytes_by_module(inventory, at, (Stage.MTP,)) == without_shared_tables(entry["bytes"])
    else:
        assert bytes_by_module(inventory, at, TARGET) == entry["bytes"]


@pytest.mark.parametrize(("model", "tokenizer"), [(V3, False), (V32, True)])
def test_vllm_is_started_without_v4s_options(model: str, tokenizer: bool) -> None:
    plan = make_plan(*inventory_of(model), Request(16, ep=16, engine="vllm"))
    assert len(plan.launch.commands) == 2
    assert ("--tokenizer-mode deepseek_v32" in plan.launch.commands[0]) is tokenizer
    assert not {"--block-size", "deepseek_v4"} & set(plan.launch.commands[0].split())
    assert "--enable-expert-parallel" in plan.launch.commands[0]


@pytest.mark.slow
def test_what_is_not_verified_for_vllm_is_refused() -> None:
    plan = make_plan(*inventory_of(V3), Request(8, ep=16, dp=2, engine="vllm"))
    assert [(breach.rule, breach.consequence) for breach in plan.breaches] == [("dp", "not verified")]


# --- inspect, plan and reshard at full size ------------------------------------------------------------------------


@pytest.mark.parametrize("model", [V3, V32])
@pytest.mark.parametrize(
    ("tp", "engine", "verdict", "rule"),
    [
        *((tp, engine, "runs", None) for tp in (1, 2, 4, 8, 16) for engine in ("sglang", "vllm", "reference")),
        (32, "sglang", "does not run", "dense-blocks"),
        (32, "vllm", "does not run", "dense-blocks"),
        (32, "reference", "does not run", "dense-columns"),
        (8, "trtllm", "not verified", "family"),
    ],
)
def test_the_matrix_says_what_each_engine_can_do(
    model: str, tp: int, engine: str, verdict: str, rule: str | None
) -> None:
    cells = {(cell.tp, cell.engine): cell for cell in inspection_of(model).matrix}
    assert (cells[tp, engine].verdict, cells[tp, engine].rule) == (verdict, rule)


@cache
def inspection_of(model: str) -> Any:
    return inspect(*inventory_of(model), (1, 2, 4, 8, 16, 32))


@pytest.mark.parametrize("model", [V3, V32])
@pytest.mark.parametrize("tp", [8, 16])
@pytest.mark.parametrize("engine", ["sglang", "vllm", "reference"])
def test_the_rows_of_a_plan_add_up_to_its_totals_and_the_ranks_to_the_checkpoint(
    engine: str, tp: int, model: str
) -> None:
    checkpoint, inventory = inventory_of(model)
    plan = make_plan(checkpoint, inventory, Request(tp, engine=engine))
    totals = plan.totals
    assert totals is not None
    for part, nbytes in (("target", totals.target_bytes_per_rank_max), ("draft", totals.draft_bytes_per_rank)):
        assert sum(row.bytes_per_rank for row in plan.modules if row.part_of == part) == nbytes
    assert (totals.draft_bytes_per_rank > 0) is (engine != "reference")
    if model == V3:  # V3.2's norms and indexer are held in other dtypes
        stored = sum(checkpoint.tensors[name].nbytes for name, at in inventory.names.items() if at.stage in TARGET)
        cut = totals.target_bytes_per_rank_max - totals.replicated_bytes_per_rank
        assert tp * cut + totals.replicated_bytes_per_rank == stored


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "nbytes"), [(8, 2048 * 7168 * 3 // 8), (16, 2048 * 7168 * 3 // 16)])
def test_the_shared_experts_of_a_layer_are_those_of_a_layer_that_has_them(tp: int, nbytes: int) -> None:
    totals = make_plan(*inventory_of(V3), Request(tp)).totals
    assert totals is not None
    assert totals.shared_experts_weight_bytes_per_layer == nbytes


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_what_can_be_planned_but_not_written_says_so(engine: str) -> None:
    checkpoint, inventory = inventory_of(V3)
    plan = make_plan(checkpoint, inventory, Request(16, engine=engine))
    assert (plan.feasible, plan.layout, plan.reshard) == (True, None, None)
    with pytest.raises(UsageError, match="writes no rank files of"):
        prepare(checkpoint, inventory, plan)
    assert "DeepSeek-V3 " in plan.launch.commands[0]


KV_BLOCKS = {"num_attention_heads": 16, "qk_nope_head_dim": 72, "qk_rope_head_dim": 56, "v_head_dim": 64}
O_BLOCKS = {"num_attention_heads": 16, "qk_nope_head_dim": 96, "qk_rope_head_dim": 32, "v_head_dim": 32}


@pytest.mark.parametrize(
    ("engine", "changes", "rule"),
    [
        ("sglang", KV_BLOCKS, "kv_b-blocks"),
        ("vllm", KV_BLOCKS, "kv_b-blocks"),
        ("sglang", O_BLOCKS, "o-blocks"),
        ("vllm", O_BLOCKS, "o-blocks"),
        ("sglang", {"moe_intermediate_size": 640, "n_shared_experts": 0}, "routed-blocks"),
        ("vllm", {"moe_intermediate_size": 640, "n_shared_experts": 0}, "routed-blocks"),
        ("vllm", {"vocab_size": 4}, "vocab"),
    ],
)
def test_the_rules_that_no_real_model_breaks_alone_have_one_that_does(
    engine: str, changes: dict[str, int], rule: str
) -> None:
    document = SMALL_V3 | changes
    inventory = take_inventory(in_memory(document, tensors_of(document, scales="F32", optional=True)))
    assert inventory.errors == ()
    request = Request(
        128 if rule == "vocab" else 8, engine=engine, shared_experts="split" if engine == "sglang" else "auto"
    )
    context = Context(inventory, first_choice(inventory, request))
    rules = [breach.rule for breach in engine_for(engine, inventory.family).breaches(context)]
    assert rule in rules if rule == "vocab" else rules == [rule]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm"])
def test_a_family_that_an_engine_is_not_verified_for_is_called_so(engine: str) -> None:
    choice = choose(inventory_of(V41)[1], Request(8, engine=engine))
    assert [breach.rule for breach in choice.breaches] == ["family"]
