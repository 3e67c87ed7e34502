"""Whether a context fits, and with how many sessions: compared with what engines printed, and shown."""

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.checkpoints.full_size import FLASH, PRO, V3, V32, inventory_of

from dsv4_shard.engines import Context, Request, engine_for
from dsv4_shard.engines.kv_cache import GIB, Cache
from dsv4_shard.engines.sglang.kv_cache import SglangPool
from dsv4_shard.engines.vllm.kv_cache import VllmPool
from dsv4_shard.planning.cache_room import cache_changes
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.memory_documents import PlanCache
from dsv4_shard.planning.outcome import memory_of
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.terminal.screens.plan import show_plan

MILLION = 1 << 20

FLASH_0731, FLASH_BASE = "DeepSeek-V4-Flash-0731", "DeepSeek-V4-Flash-Base"


def planned(model: str, session: int | None = None, **wanted: Any) -> Plan:
    return make_plan(*inventory_of(model), Request(**wanted), model, session)


def cache_in(plan: Plan) -> PlanCache:
    assert plan.memory is not None
    assert plan.memory.kv_cache is not None
    return plan.memory.kv_cache


def rules_of(model: str, **wanted: Any) -> Cache:
    inventory = inventory_of(model)[1]
    context = Context(inventory, choose(inventory, Request(**wanted)).deployment)
    cache = engine_for(context.deployment.engine, inventory.family).kv_cache(context)
    assert cache is not None
    return cache


# --- figures that engines printed ------------------------------------------------------------------------------------

WITHIN = 0.15


@pytest.mark.parametrize(("model", "room", "in_flight", "length", "concurrency"), [
    # vllm#51454, V4-Flash-0731, 8 B200, 0.25.0, utilization 0.95, 8,192 tokens a step: 20.43 and 19.6 of 1,048,576
    (FLASH_0731, 0.95 * 178.35 - 19.23 - 8, 8192, MILLION, 20.43),
    (FLASH_0731, 0.95 * 178.35 - 25.36 - 8, 8192, MILLION, 19.6),
    # NVIDIA's forum 370416, V4-Flash, 2 GB10: 27.93 GiB, "just short of 4" of 1,048,576
    (FLASH, 27.93, 8192, MILLION, 3.97),
    # a recipe for V4-Flash-DSpark, 2 GB10: 26.3 GiB, 2.61 of 1,048,576, asynchronous scheduling
    (FLASH_0731, 26.3, 16384, MILLION, 2.61),
    # vllm#44376, V4-Flash, 2 GH200: 30,000 tokens need 6.66 GiB, and 13,528 fit into 5.44
    (FLASH, 6.66, 16384, 30_000, 1),
    (FLASH, 5.44, 16384, 13_528, 1),
])  # fmt: skip
def test_vllms_concurrency_is_near_what_it_printed(
    model: str, room: float, in_flight: int, length: int, concurrency: float
) -> None:
    pool = rules_of(model, tp=8, engine="vllm", gpu="b200").pool
    assert isinstance(pool, VllmPool)
    tokens = VllmPool(pool.groups, in_flight).tokens(int(room * GIB), length)
    assert tokens / length == pytest.approx(concurrency, rel=WITHIN)


@pytest.mark.parametrize(("total", "before", "free", "share", "room"), [
    # V4-Flash-Base, TP 8, H20: "Memory profiling: available_gpu_memory=57.01 GB, total_gpu_memory=93.58 GB"
    (95.0, 93.58, 57.01, 0.60, 19.58),
    (95.0, 93.58, 57.01, 0.88, 45.78),
])  # fmt: skip
def test_sglangs_room_is_near_what_it_printed(
    total: float, before: float, free: float, share: float, room: float
) -> None:
    assert free - before * (1 - share) == pytest.approx(room, abs=0.01)
    rules = rules_of(FLASH_BASE, tp=8, gpu="h20-96")
    weights = planned(FLASH_BASE, tp=8, gpu="h20-96").memory
    assert weights is not None
    bounds = Cache(rules.option, share, rules.before, rules.beside, rules.pool).room(int(total * GIB), weights.weights)
    assert bounds.least <= room * GIB <= bounds.most
    assert bounds.likely == pytest.approx(room * GIB, rel=WITHIN)


@pytest.mark.parametrize(("model", "wanted", "used"), [
    (FLASH_BASE, {"tp": 8, "gpu": "h20-96"}, 93.58 - 57.01),
    (PRO, {"tp": 16, "ep": 16, "a2a": "deepep", "gpu": "h800"}, 77.80 - 11.66),
    (FLASH, {"tp": 8, "gpu": "rtx-pro-6000"}, 20.45),  # 0.5.19 on 8 RTX PRO 4500: "mem usage=20.45 GB"
])  # fmt: skip
def test_what_sglang_holds_after_loading_is_within_the_bounds(model: str, wanted: dict[str, Any], used: float) -> None:
    memory = planned(model, **wanted).memory
    assert memory is not None
    beside = rules_of(model, **wanted).beside
    assert beside.least <= used * GIB - memory.weights <= beside.most


def test_sglang_refuses_where_a_log_says_so() -> None:
    """V4-Pro, TP 16, EP 16, deepep, H800, share 0.805: rest_memory=-3.51 GB, "Not enough memory"."""
    plan = planned(PRO, tp=16, ep=16, a2a="deepep", gpu="h800")
    rules = rules_of(PRO, tp=16, ep=16, a2a="deepep", gpu="h800")
    assert plan.memory is not None
    at_that_share = Cache(rules.option, 0.805, rules.before, rules.beside, rules.pool)
    bounds = at_that_share.room(plan.memory.capacity, plan.memory.weights)
    assert bounds.least <= -3.51 * GIB <= bounds.most
    assert (cache_in(plan).tokens, cache_in(plan).sessions) == (0, 0)
    assert "leaves no room for KV cache beside the weights" in cache_in(plan).words[0]


def test_sglangs_token_differs_from_an_earlier_versions_as_that_change_says() -> None:
    """0.5.15.post1 printed 13,735.04 for V4-Pro at ratio 0.15: it had twice the states of ratio 4 (sglang#40337)."""
    pool = rules_of(PRO, tp=8, gpu="h200").pool
    assert isinstance(pool, SglangPool)
    window = (pool.token - 30 * (585 + 132) / 4 - 31 * 864 / 128) * 10
    states = 8 / 256 * 16 * (512 + 128) * 30
    then = pool.token + 0.05 * window + 0.15 * states
    assert float(then) - 0.15 * 61 - 30 / 4 - 31 * (864 - 584) / 128 == pytest.approx(13735.04, abs=0.01)


# --- what a plan says ------------------------------------------------------------------------------------------------


def shown(plan: Plan) -> str:
    out = StringIO()
    show_plan(Console(file=out, width=200), plan, "SGLang")
    return out.getvalue()


def test_a_plan_says_whether_a_context_fits_and_with_how_many_sessions() -> None:
    plan = planned(PRO, 131_072, tp=16, gpu="h20-96")
    cache = cache_in(plan)
    assert (plan.context, cache.session, cache.fits, cache.groups) == (131_072, 131_072, True, 1)
    assert cache.tokens is not None
    assert cache.sessions == cache.tokens // 131_072 > 0
    assert f"{cache.sessions} sessions of 131,072 tokens at once" in shown(plan)
    assert "--context-length 131072" in plan.launch.commands[0]


def test_sessions_are_counted_in_each_group_of_attention_dp() -> None:
    cache = cache_in(planned(FLASH, 131_072, tp=8, ep=8, dp=8, gpu="b200"))
    assert cache.sessions is not None
    assert cache.groups == 8
    assert (
        f"{cache.sessions} sessions at once in each of 8 attention groups, {cache.sessions * 8:,} in all"
        in (cache.words[1])
    )


def test_without_a_context_the_models_longest_is_looked_at() -> None:
    plan = planned(PRO, tp=1, dp=8, ep=8, engine="vllm", gpu="h200")
    cache = cache_in(plan)
    assert (plan.context, cache.session, cache.fits, cache.tokens) == (None, MILLION, False, None)
    assert "--max-model-len" not in plan.launch.commands[0]
    assert "a context of 1,048,576 tokens does not fit; it takes 14.4 GiB of room" in shown(plan)


def test_no_tokens_are_named_where_the_room_is_not_known_well_enough() -> None:
    """vllm#51041: 7.7 GiB and 121,344 tokens, with 0.26.0."""
    cache = cache_in(planned(FLASH_0731, tp=2, engine="vllm", gpu="h20-96"))
    assert cache.room_least <= 7.7 * GIB <= cache.room_most
    assert (cache.tokens, cache.sessions, cache.fits) == (None, None, None)
    assert 0 < cache.certain_session <= 121_344


def test_a_context_beyond_the_models_longest_does_not_fit() -> None:
    plan = planned(PRO, 2_000_000, tp=8, gpu="b200")
    cache = cache_in(plan)
    assert cache.fits is False
    assert "--context-length" not in plan.launch.commands[0]
    assert "the model's longest is 1,048,576" in cache.words[1]


def test_a_share_that_makes_room_is_named_and_makes_room() -> None:
    plan = planned(PRO, 131_072, tp=16, ep=16, dp=16, gpu="h20-96")
    cache = cache_in(plan)
    assert cache.share_needed is not None
    assert f"--mem-fraction-static {cache.share_needed:g} makes room" in cache.words[1]
    rules = rules_of(PRO, tp=16, ep=16, dp=16, gpu="h20-96")
    wider = Cache(rules.option, cache.share_needed, rules.before, rules.beside, rules.pool)
    assert plan.memory is not None
    assert wider.fits(wider.room(plan.memory.capacity, plan.memory.weights), 131_072)


@pytest.mark.parametrize(("model", "wanted"), [
    (PRO, {"engine": "trtllm"}), (PRO, {"engine": "reference"}), (V32, {"a2a": "megamoe"}),
    (V3, {"engine": "vllm", "gpu": "rtx-pro-6000"}),
    (FLASH, {"engine": "vllm", "gpu": "rtx-pro-6000"}), (PRO, {"gpu": "mi300x"}), (PRO, {"gpu": "gb10"}),
    (PRO, {"engine": "vllm", "engine_version": "0.25.0"}), (PRO, {"a2a": "megamoe"}),
])  # fmt: skip
def test_what_was_not_compared_gets_no_number(model: str, wanted: dict[str, str]) -> None:
    inventory = inventory_of(model)[1]
    context = Context(inventory, choose(inventory, Request(**{"tp": 8, "gpu": "b200"} | wanted)).deployment)  # type: ignore[arg-type]
    assert engine_for(context.deployment.engine, inventory.family).kv_cache(context) is None


def test_no_cache_is_named_where_the_weights_do_not_fit() -> None:
    plan = planned(PRO, tp=8, gpu="h100")
    assert plan.memory is not None
    assert not plan.memory.fits
    assert plan.memory.kv_cache is None


@pytest.mark.parametrize("gpu", ["h20-96", "h100", "h200", "b200", "rtx-pro-6000"])
@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_more_room_never_holds_less(engine: str, gpu: str) -> None:
    inventory = inventory_of(FLASH)[1]
    context = Context(inventory, choose(inventory, Request(8, engine=engine, gpu=gpu)).deployment)
    cache = engine_for(engine, inventory.family).kv_cache(context)
    if cache is None:
        return
    for length in (100, 8192, 131_072, MILLION):
        needed = cache.pool.needs(length)
        assert cache.pool.sessions(needed, length) >= 1
        assert cache.pool.sessions(needed - (4 << 20), length) == 0
        assert cache.longest(needed, MILLION) >= length
        counts = [cache.pool.sessions(room << 30, length) for room in range(1, 60, 7)]
        assert counts == sorted(counts)


@pytest.mark.parametrize("wanted", [
    {"tp": 4, "dp": 3, "gpu": "h100"},
    {"tp": 1, "ep": 5, "dp": 5, "gpu": "gb200"},
    {"tp": 2, "ep": 10, "dp": 5, "gpu": "rtx-pro-6000"},  # vLLM's cache was not compared there: its default share alone
])  # fmt: skip
def test_weights_that_leave_no_room_for_a_cache_do_not_run(wanted: dict[str, Any]) -> None:
    plan = planned(PRO, engine="vllm", **wanted)
    assert plan.memory is not None
    assert plan.memory.fits
    assert not plan.memory.serves
    assert plan.verdict == "does not run"
    assert [breach.rule for breach in plan.breaches] == ["kv-cache"]
    assert all("leaves no room for KV cache" in breach.reason for breach in plan.breaches)


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@given(weights=st.integers(40 * GIB, 95 * GIB))
def test_a_layout_that_runs_has_room_by_default_or_names_a_share_that_has(engine: str, weights: int) -> None:
    """So that no command that a plan prints stops for want of KV cache."""
    inventory = inventory_of(PRO)[1]
    choice = choose(inventory, Request(16, gpu="h20-96", engine=engine))
    context = Context(inventory, choice.deployment)
    memory = memory_of(context, weights, choice)
    assert memory is not None
    rules = rules_of(PRO, tp=16, gpu="h20-96", engine=engine)
    shares = [float(setting.split()[-1]) for change in cache_changes(context, memory) for setting in change.settings
              if rules.option in setting]  # fmt: skip
    share = shares[0] if shares else rules.share
    if memory.serves:
        assert replace(rules, share=share).room(choice.deployment.gpu.memory, weights).most >= rules.pool.needs(1)


@pytest.mark.parametrize("gpu", ["mi355x", "ascend-910c"])
def test_tensorrt_llm_is_never_offered_for_gpus_of_other_makers(gpu: str) -> None:
    plan = planned(PRO, tp=8, gpu=gpu, engine="trtllm")
    assert plan.verdict == "does not run"
    assert "has no code for GPUs of" in plan.breaches[0].reason
