"""Bytes per rank where no outcome is verified: those of the parameters that the engines' own classes declare.

`tests/data/unverified.json` has the sizes of all parameters of a rank that SGLang 0.5.23 and vLLM 0.33.0 declare for
V4.1 and for the first five layers of V4-Pro with NVFP4 experts, without the scalars of SGLang's attention (`attn_mqa`).
"""

import itertools
import json
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from support.checkpoints.full_size import PRO_NVFP4, REAL_MODELS, V41, config_of, in_memory, inventory_of
from support.checkpoints.skeletons import expand
from support.deployments import request_after
from support.paths import DATA

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.checkpoint import Inventory, outside_layers, take_inventory
from dsv4_shard.engines import ENGINES, Context, Request, Verdict, engine_for
from dsv4_shard.engines.engram import column_starts
from dsv4_shard.planning import Plan, make_plan
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.layouts import layouts_on
from dsv4_shard.planning.weights import loads, totals_of

DECLARED: list[dict[str, Any]] = json.loads((DATA / "unverified.json").read_text())

_LAYERS = 5

KINDS = ("h20-96", "b200", "rtx-pro-6000", "gb10", "a100-40", "mi355x", "ascend-910c")
"""A GPU of each kind of rules."""


@cache
def first_layers_of_nvfp4() -> Inventory:
    """The inventory of the first layers, which are of every kind."""
    document = config_of(PRO_NVFP4)
    ratios = document["compress_ratios"]
    document |= {"num_hidden_layers": _LAYERS, "compress_ratios": [*ratios[:_LAYERS], 0]}
    layer = re.compile(r"(?:model\.)?layers\.(\d+)\.")
    tensors = {
        name: stored
        for name, stored in expand(PRO_NVFP4).items()
        if not (found := layer.match(name)) or int(found[1]) < _LAYERS
    }
    inventory = take_inventory(in_memory(document, tensors))
    assert inventory.errors == ()
    return inventory


def _id(entry: dict[str, Any]) -> str:
    return "-".join((entry["model"], *map(str, entry["request"].values()), f"rank{entry['rank']}"))


@pytest.mark.parametrize("entry", DECLARED, ids=_id)
def test_bytes_are_those_that_the_engines_declare(entry: dict[str, Any]) -> None:
    inventory = first_layers_of_nvfp4() if entry["model"] == PRO_NVFP4 else inventory_of(entry["model"])[1]
    request = Request(**entry["request"])
    engine = engine_for(request.engine, inventory.family)
    context = Context(inventory, next(engine.candidates(inventory, request)))
    if entry["model"] == V41 and request.tp == 16 and request.ep == 1:
        pytest.skip("4.5 scales a rank: the engine rounds down what no kernel reads, the plan has them whole")
    totals = totals_of(list(loads(engine, context)), context, (0, 0))
    on_gpu = entry["bytes"] - (entry["tables"] if request.engine == "vllm" else 0)
    is_last = entry["rank"] == request.tp - 1
    assert on_gpu == (totals.target_bytes_per_rank_max if is_last else totals.target_bytes_per_rank_min)


_VOCABULARY = 2 * 129280 // 8 * 5120 * 2
"""Rows of the target's embedding and head in vLLM's draft, which no role counts."""


@pytest.mark.parametrize(
    ("request_", "declared"),
    [
        (Request(8, runner="marlin", shared_experts="split"), 1_227_289_608),
        (Request(16, ep=16, runner="marlin", shared_experts="whole"), 840_961_416),
        (Request(8, ep=8, engine="vllm"), 1_550_205_832 - _VOCABULARY),
    ],
)
def test_bytes_of_v41s_draft_are_those_that_the_engines_declare(request_: Request, declared: int) -> None:
    """SGLang's number is that of its default mode, without confidence head."""
    inventory = inventory_of(V41)[1]
    engine = engine_for(request_.engine, inventory.family)
    context = Context(inventory, next(engine.candidates(inventory, request_)))
    confidence = (5120 + 256) * 4 if request_.engine == "sglang" else 0
    totals = totals_of(list(loads(engine, context)), context, (0, 0))
    assert totals.draft_bytes_per_rank - confidence == declared


def test_hash_columns_have_the_next_primes_of_rows() -> None:
    config = config_of(V41)["text_config"]
    tables = column_starts(config["engram_vocab_size"], 2, 24)
    assert [table[-1] for table in tables] == config["engram_num_embeddings"]
    assert all(table[0] == 0 and len(table) == 25 for table in tables)


@pytest.mark.parametrize(("least", "tables"), [(0, 2), (10**12, 2), (16_000_000, 10**6)])
def test_sizes_of_no_model_have_no_columns(least: int, tables: int) -> None:
    assert column_starts(least, tables, 24) == ()


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_tables_of_other_sizes_are_cut_into_equal_rows(engine: str) -> None:
    _, inventory = inventory_of(V41)
    other = replace(inventory, config=inventory.config.model_copy(update={"engram_vocab_size": 17_000_000}))
    table = engine_for(engine, inventory.family)
    context = Context(other, next(table.candidates(other, Request(8, engine=engine))))
    rows = [load.stored.shape[0] for load in loads(table, context) if load.group.role == "engram.embed"]
    assert set(rows) == ({384006168 // 8, -(-384016682 // 8)} if engine == "sglang" else set())


# --- every release, engine and kind of GPU -------------------------------------------------------------------------


def plan_of(model: str, request: Request) -> Plan:
    checkpoint, inventory = inventory_of(model)
    return make_plan(checkpoint, outside_layers(inventory), request)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", REAL_MODELS)
def test_not_verified_hides_no_bytes_and_no_way_out_is_refused(model: str, engine: str) -> None:
    for gpu, tp in itertools.product(KINDS, (3, 16)):
        asked = Request(tp, engine=engine, gpu=gpu)
        plan = plan_of(model, asked)
        if plan.verdict is Verdict.UNVERIFIED:
            assert plan.totals is not None
            assert plan.memory is not None
            assert plan.memory.weights >= plan.totals.target_bytes_per_rank_max > 0, asked
            said = (*plan.assumptions, *plan.notes)
            assert any("not verified" in words or words.startswith("bytes are") for words in said), asked
        for breach in plan.breaches:
            for way in breach.remedies:
                request = request_after(way, asked)
                then = request and plan_of(model, request)
                assert not (then and then.breaches), (asked, way)
                is_verified = not then or then.verdict is not Verdict.UNVERIFIED
                assert is_verified or then.request.engine == engine == "node", (asked, way)


@pytest.mark.parametrize(("model", "engine"), [(V41, "sglang"), (V41, "vllm"), (V41, "trtllm"), (PRO_NVFP4, "trtllm")])
def test_a_search_has_bytes_of_engines_that_are_not_verified(model: str, engine: str) -> None:
    checkpoint, inventory = inventory_of(model)
    request = Request(8, gpu="b300", engine=engine)
    found, _ = layouts_on(checkpoint, outside_layers(inventory), request, (engine,), verified=False)
    assert found
    for one in found:
        assert one.layout.assumption is not None
        assert one.layout.tokens is None
        assert one.layout.weight_bytes > 0
        assert choose(inventory, one.request).is_weighed
    uneven, _ = layouts_on(
        checkpoint, outside_layers(inventory), Request(5, gpu="b300", engine=engine), (engine,), verified=False
    )
    bound = engine_for(engine, inventory.family).is_bound
    assert bound or all(one.deployment.attention_tp == 1 for one in uneven)


def test_every_maker_and_rule_of_gpus_is_tried() -> None:
    def kind(name: str) -> tuple[bool, str, int]:
        gpu = GPUS[name]
        return gpu.verified, gpu.title.partition(" ")[0], 100 if gpu.sm == 103 else gpu.sm

    assert set(map(kind, KINDS)) == set(map(kind, GPUS))
