"""The head and the embedding: over which ranks they are cut, and with how many rows of padding."""

from typing import Any

import pytest
from support.checkpoints.full_size import PRO, in_memory, inventory_of

from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import find_engine
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.recipe_builder import make_recipe

VOCAB, HIDDEN = 129280, 7168


def plan_of(**wanted: Any) -> Plan:
    return make_plan(*inventory_of(PRO), Request(**wanted), PRO)


def rows_of(plan: Plan, role: str) -> int:
    (module,) = (module for module in plan.modules if module.role == role)
    assert module.rank_shape[1] == HIDDEN
    return module.rank_shape[0]


@pytest.mark.parametrize(("tp", "dp", "rows"), [(8, 2, 32320), (16, 16, VOCAB), (4, 4, VOCAB)])
def test_dp_lm_head_cuts_the_head_over_attention_tp(tp: int, dp: int, rows: int) -> None:
    """32320 rows at TP 8 and DP 2 are what SGLang 0.5.23's own class declares."""
    plan = plan_of(tp=tp, dp=dp, dp_lm_head=True)
    assert (rows_of(plan, "head"), rows_of(plan, "embed")) == (rows, VOCAB)
    without = plan_of(tp=tp, dp=dp)
    assert rows_of(without, "head") == VOCAB // tp
    more = plan.totals.target_bytes_per_rank_max - without.totals.target_bytes_per_rank_max
    assert more == (rows - VOCAB // tp) * HIDDEN * 2


@pytest.mark.parametrize("tp", [12, 24])
def test_tp_12_and_24_pad_the_head_only_without_dp_lm_head(tp: int) -> None:
    asked = {"tp": tp, "dp": tp, "a2a": "megamoe", "gpu": "gb300"}
    padded, whole = plan_of(**asked), plan_of(**asked, dp_lm_head=True)
    assert padded.layout == whole.layout == "sglang"
    assert rows_of(padded, "head") * tp == -(-VOCAB // (64 * tp)) * 64 * tp
    assert rows_of(whole, "head") == VOCAB
    assert whole.totals.padding_bytes_per_rank == 0
    assert "--enable-dp-lm-head" in whole.launch.program.options


def test_without_attention_dp_sglang_drops_dp_lm_head() -> None:
    plan, plain = plan_of(tp=8, dp_lm_head=True), plan_of(tp=8)
    assert plan.notes == ("--dp-lm-head changes nothing: SGLang drops it without attention DP (--dp)", *plain.notes)
    assert (plan.modules, plan.out) == (plain.modules, plain.out)
    assert plan.ways[0].launch == plain.ways[0].launch


@pytest.mark.parametrize("engine", ["vllm", "trtllm", "reference"])
def test_dp_lm_head_is_refused_where_it_means_nothing(engine: str) -> None:
    (breach,) = plan_of(tp=8, engine=engine, dp_lm_head=True).breaches
    assert breach.rule == "sglang-options"
    assert breach.reason == "--dp-lm-head, --redundant-experts and --expert-locations are SGLang's"
    assert breach.remedies[-1] == "--engine sglang"


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize(("vocab", "tp", "rows"), [(1000, 4, 256), (1000, 1, 1024), (260, 2, 160), (256, 2, 128)])
def test_a_padded_vocabulary_is_planned_and_written(engine: str, vocab: int, tp: int, rows: int) -> None:
    document = DEMO_CONFIG | {"vocab_size": vocab}
    checkpoint = in_memory(document, tensors_of(document))
    inventory, found = take_inventory(checkpoint), find_engine(engine)
    request = Request(tp, engine=engine, gpu="h100")
    context = Context(inventory, next(found.candidates(inventory, request)))
    recipe = make_recipe(checkpoint, found, context, tuple(range(tp)))
    heads = [file.tensors["lm_head.weight"].shape[0] for file in recipe.files if "lm_head.weight" in file.tensors]
    assert (make_plan(checkpoint, inventory, request).layout, heads) == (engine, [rows] * tp)


def test_a_whole_embedding_is_padded_too() -> None:
    """As SGLang 0.5.23's class declares it under attention DP: padding does not depend on the number of ranks."""
    document = DEMO_CONFIG | {"vocab_size": 1000}
    checkpoint = in_memory(document, tensors_of(document))
    plan = make_plan(checkpoint, take_inventory(checkpoint), Request(4, dp=2, gpu="h100"))
    (embedding,) = (module for module in plan.modules if module.role == "embed")
    assert embedding.rank_shape[0] == 1024
    assert embedding.padding_per_rank == 24 * document["hidden_size"] * 2
