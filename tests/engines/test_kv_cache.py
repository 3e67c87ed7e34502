"""KV cache: shares of memory, pools and groups, compared with what the engines' own code says (tests/data/kv_cache)."""

import json
from dataclasses import replace
from typing import Any

import pytest
from support.checkpoints.full_size import FLASH, PRO, V3, V32, inventory_of
from support.paths import DATA

from dsv4_shard.engines import Context, Request, engine_for
from dsv4_shard.engines.kv_cache import Cache
from dsv4_shard.engines.sglang import kv_cache as sglang
from dsv4_shard.engines.sglang import latent_cache
from dsv4_shard.engines.vllm import kv_cache as vllm
from dsv4_shard.models import TARGET
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.weights import rank_nbytes

GIB = 1 << 30


def answers(engine: str) -> list[dict[str, Any]]:
    return json.loads((DATA / "kv_cache" / f"{engine}.json").read_text())


def context_of(model: str, **wanted: Any) -> Context:
    inventory = inventory_of(model)[1]
    return Context(inventory, choose(inventory, Request(**wanted)).deployment)


def cache_of(model: str, **wanted: Any) -> Cache | None:
    context = context_of(model, **wanted)
    return engine_for(context.deployment.engine, context.inventory.family).kv_cache(context)


RELEASES = {"pro": PRO, "flash-0731": "DeepSeek-V4-Flash-0731", "pro-0813": "DeepSeek-V4-Pro-0813"}

RATIOS = {
    "few": (0, 4, 128, 4, 128, 4),
    "even": (4, 128) * 6,
    "windows": (0,) * 9 + (4, 128) * 3,
    "fours": (4,) * 7,
    "long": (128,) * 20 + (4,) * 3,
}


def asked_cache(engine: str, asked: dict[str, Any]) -> Cache:
    """The cache of a deployment that the engine was asked about; layouts that break other rules included."""
    context = context_of(RELEASES.get(asked["model"], FLASH), engine=engine, tp=1, gpu=asked["gpu"])
    config = context.v4
    if asked["model"] in RATIOS:
        ratios = RATIOS[asked["model"]]
        config = config.model_copy(update={"compress_ratios": ratios, "num_hidden_layers": len(ratios)})
    options: dict[str, Any] = {key: asked.get(key) for key in ("tp", "ep", "dp", "a2a", "draft")}
    deployment = replace(context.deployment, **options)
    cache = engine_for(engine, context.inventory.family).kv_cache(
        Context(replace(context.inventory, config=config), deployment)
    )
    assert cache is not None
    return cache


def name_of(answer: dict[str, Any]) -> str:
    return "-".join(map(str, answer["asked"].values()))


LATENT = {"v3": V3, "v32": V32}


def of_generation(engine: str, *, latent: bool) -> list[dict[str, Any]]:
    return [one for one in answers(engine) if (one["asked"]["model"] in LATENT) == latent]


@pytest.mark.parametrize("answer", of_generation("sglang", latent=True), ids=name_of)
def test_sglangs_pool_of_latent_rows_is_that_of_its_own_code(answer: dict[str, Any]) -> None:
    asked = answer["asked"]
    context = context_of(LATENT[asked["model"]], engine="sglang", tp=1, gpu=asked["gpu"])
    deployment = replace(
        context.deployment,
        **{key: asked[key] for key in ("tp", "ep", "dp", "a2a")},
        attention_tp=asked["tp"] // asked["dp"],
    )
    cache = latent_cache.cache_of(replace(context, deployment=deployment))
    assert cache is not None
    assert cache.share == answer["mem_fraction_static"]
    assert isinstance(cache.pool, latent_cache.LatentPool)
    assert (cache.pool.token, cache.pool.page) == (answer["bytes_per_token"], answer["page_size"])
    for budget, tokens in answer["tokens"].items():
        assert cache.pool.tokens(int(budget) * GIB, 4096) == tokens


def test_room_of_v3_2_is_near_what_sglang_printed() -> None:
    """8 B200, TP 8, attention DP 8 (sglang#11309): 43.67 GB of cache, and 37.71 GB free beside it.

    That version had a share of its own, which follows from the free memory, and rows of 656 bytes with scales in FP8.
    """
    context = context_of(V32, engine="sglang", tp=8, dp=8, gpu="b200")
    cache = latent_cache.cache_of(context)
    assert cache is not None
    gpu = context.deployment.gpu.memory
    share = 1 - 37.71 * GIB / (gpu - cache.before.likely)
    room = replace(cache, share=share).room(gpu, rank_nbytes(context.inventory, context.deployment, TARGET)).likely
    assert room / GIB == pytest.approx(43.67, rel=0.05)
    assert room / ((656 + 132) * 61) == pytest.approx(975_424, rel=0.05)


def test_tokens_of_v3_are_near_what_vllm_printed() -> None:
    """8 H200, TP 8: 512,000 tokens of vLLM 0.7.1 (Red Hat's post of February 2025), whose default share was 0.90."""
    context = context_of(V3, engine="vllm", tp=8, gpu="h200")
    cache = engine_for("vllm", context.inventory.family).kv_cache(context)
    assert cache is not None
    weights = rank_nbytes(context.inventory, context.deployment, TARGET)
    tokens = cache.tokens(replace(cache, share=0.90).room(context.deployment.gpu.memory, weights), 163_840)
    assert tokens == pytest.approx(512_000, rel=0.15)


@pytest.mark.parametrize("change", [{"kv_lora_rank": 256}, {"index_head_dim": 64}, {"max_position_embeddings": None}])
def test_latent_rows_of_another_geometry_get_no_number(change: dict[str, Any]) -> None:
    for engine in ("sglang", "vllm"):
        context = context_of(V32, engine=engine, tp=8, gpu="h200")
        table = engine_for(engine, context.inventory.family)
        assert table.kv_cache(context) is not None
        config = context.v3.model_copy(update=change)
        other = replace(context, inventory=replace(context.inventory, config=config))
        assert table.kv_cache(other) is None or (engine == "vllm" and "max_position_embeddings" in change)


@pytest.mark.parametrize("answer", of_generation("sglang", latent=False), ids=name_of)
def test_sglangs_share_and_pools_are_those_of_its_own_code(answer: dict[str, Any]) -> None:
    cache = asked_cache("sglang", answer["asked"])
    assert cache.share == answer["mem_fraction_static"]
    assert isinstance(cache.pool, sglang.SglangPool)
    assert float(cache.pool.token) == pytest.approx(answer["bytes_per_full_token"], rel=1e-9)
    assert cache.pool.chunk == answer["chunked_prefill_size"]
    assert cache.pool.requests == answer["max_running_requests"] // answer["asked"]["dp"]
    assert cache.pool.slots == answer["window_slots"]
    for budget, pool in answer["pools"].items():
        if pool is None:  # refused: not even a window's slots
            assert cache.pool.needs(1) > int(budget) * GIB
            continue
        tokens, windows = pool
        assert cache.pool.tokens(int(budget) * GIB, 4096) == tokens
        assert int(tokens * sglang.WINDOW_RATIO) // sglang.PAGE * sglang.PAGE == windows


@pytest.mark.parametrize("answer", of_generation("vllm", latent=True), ids=name_of)
def test_vllms_blocks_of_latent_rows_are_those_of_its_own_code(answer: dict[str, Any]) -> None:
    asked = answer["asked"]
    cache = cache_of(LATENT[asked["model"]], engine="vllm", tp=asked["tp"], gpu=asked["gpu"])
    assert cache is not None
    assert cache.share == answer["gpu_memory_utilization"]
    assert isinstance(cache.pool, vllm.VllmPool)
    assert cache.pool.block_bytes == answer["bytes_per_block"]
    for length, blocks in answer["blocks"].items():
        assert [group.blocks(int(length), cache.pool.in_flight) for group in cache.pool.groups] == blocks


@pytest.mark.parametrize("answer", of_generation("vllm", latent=False), ids=name_of)
def test_vllms_groups_are_those_of_its_own_code(answer: dict[str, Any]) -> None:
    cache = asked_cache("vllm", answer["asked"])
    assert cache.share == answer["gpu_memory_utilization"]
    assert isinstance(cache.pool, vllm.VllmPool)
    assert cache.pool.block_bytes == answer["bytes_per_block"]
    assert cache.pool.in_flight == answer["max_in_flight_tokens"]
    for length, blocks in answer["blocks"].items():
        assert sorted(group.blocks(int(length), cache.pool.in_flight) for group in cache.pool.groups) == blocks


@pytest.mark.parametrize("change", [
    {"head_dim": 256}, {"qk_rope_head_dim": None}, {"index_head_dim": 64}, {"sliding_window": 4096},
    {"compress_ratios": (4, 128, 8)}, {"compress_ratios": (128, 128, 0)}, {"compress_ratios": (0, 0, 0)},
])  # fmt: skip
@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_models_of_another_geometry_get_no_number(engine: str, change: dict[str, Any]) -> None:
    context = context_of(FLASH, engine=engine, tp=4, gpu="b200")
    table = engine_for(engine, context.inventory.family)
    assert table.kv_cache(context) is not None
    config = context.v4.model_copy(update={"num_hidden_layers": 3} | change)
    assert table.kv_cache(Context(replace(context.inventory, config=config), context.deployment)) is None
