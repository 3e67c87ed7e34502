"""KV cache: bytes of a token, compared with what engines printed."""

from fractions import Fraction
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from support.checkpoints.full_size import FLASH, PRO, PRO_NVFP4, V3, V32, V41, inventory_of

from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.kv_cache import CacheEntry, bf16_entry, fp8_entry, growth
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.kv_cache import bytes_per_token
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.terminal.plan import show_plan

GIB = 1 << 30


def context_of(model: str, **wanted: Any) -> Context:
    inventory = inventory_of(model)[1]
    return Context(inventory, choose(inventory, Request(**wanted)).deployment)


def printed_by_sglang(model: str, swa_ratio: float, *, speculative: bool, ratios: int, states: bool = True) -> float:
    """`bytes_per_full_token` of SGLang's `DSV4PoolConfigurator`: what grows, by this tool, and its windows and states.

    To a token it also charges `swa_ratio` of a window's row in each layer, and of the states in F32 of what is not yet
    compressed: 8 of 128 slots at ratio 4 and all at 128, twice that when drafting. `ratios` is how many entries of
    compress_ratios it took for layers, `states` whether those of ratio 128 are charged to tokens.
    """
    context = context_of(model, tp=8)
    config, entry = context.v4, fp8_entry(context)
    assert entry is not None
    layers = config.compress_ratios[:ratios]
    twice = 2 if speculative else 1
    window = entry.row * ratios
    state_4 = 4 * 4 * (config.head_dim + config.index_head_dim) * layers.count(4) * 8 * twice / 128
    state_128 = 2 * 4 * config.head_dim * layers.count(128) * twice if states else 0
    return float(growth(config, entry)) + swa_ratio * (window + state_4 + state_128)


@pytest.mark.parametrize(("expected", "model", "swa_ratio", "options"), [
    # 0.5.12.post1, H800, TP 16 PP 2 and TP 8 PP 4: "bytes_per_full_token 23,749.84", swa_full_tokens_ratio 0.1
    (23749.84, PRO, 0.1, {"speculative": False, "ratios": 62}),
    # 2026-05-15, H20, TP 8: "bytes_per_full_token=15955.85, available_bytes=45.78 GB, full_token=3080960"
    (15955.85, FLASH, 0.1, {"speculative": False, "ratios": 44}),
    # 2026-05-13, drafting: "bytes_per_full_token=176983.05 … full_token=529408", swa_size=423424
    (176983.05, FLASH, 0.8, {"speculative": True, "ratios": 44}),
    # 0.5.15.post1: "bytes_per_full_token=13735.04, available_bytes=118.93 GB, c128_state_fixed=1.01 GB", ratio 0.15
    (13735.04, PRO, 0.15, {"speculative": False, "ratios": 61, "states": False}),
])  # fmt: skip
def test_hoppers_bytes_of_a_token_are_within_those_that_sglang_printed(
    expected: float, model: str, swa_ratio: float, options: dict[str, int]
) -> None:
    assert printed_by_sglang(model, swa_ratio, **options) == pytest.approx(expected, abs=0.005)  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "engine", "room", "tokens"), [
    (PRO, "sglang", 34.81, 1_573_888),   # as above
    (FLASH, "sglang", 45.78, 3_080_960),
    (FLASH, "sglang", 19.58, 1_317_632),
    (FLASH, "vllm", 7.7, 150_000),       # vllm#51041, H20
    (FLASH, "vllm", 5.44, 13_528),       # vllm#44376, GH200: longest context
])  # fmt: skip
def test_the_bound_stays_above_the_tokens_that_engines_printed_for_a_room(
    model: str, engine: str, room: float, tokens: int
) -> None:
    token = bytes_per_token(context_of(model, tp=8, engine=engine))
    assert token is not None
    assert room * GIB / token > tokens


def test_a_token_of_pro_on_hopper_costs_what_the_formula_says() -> None:
    assert fp8_entry(context_of(PRO, tp=8)) == CacheEntry(584, 132)
    assert bytes_per_token(context_of(PRO, tp=8)) == 30 * Fraction(584 + 132, 4) + 31 * Fraction(584, 128)


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("gpu", ["b200", "gb300", "rtx-pro-6000"])
def test_on_blackwell_the_smallest_rows_and_keys_are_taken(engine: str, gpu: str) -> None:
    assert fp8_entry(context_of(PRO, tp=8, gpu=gpu, engine=engine)) == CacheEntry(512, 68)


def test_the_reference_keeps_rows_and_keys_in_bf16() -> None:
    assert bf16_entry(context_of(PRO, tp=8, engine="reference")) == CacheEntry(1024, 256)


@pytest.mark.slow
def test_v3_keeps_its_latent_in_bf16() -> None:
    assert bytes_per_token(context_of(V3, tp=8)) == 70_272


@pytest.mark.parametrize(("model", "wanted"), [
    (PRO, {"engine": "trtllm"}), (V3, {"engine": "reference"}), (V32, {"engine": "sglang"}),
    (V41, {"engine": "reference"}), (PRO, {"gpu": "mi300x"}), (PRO_NVFP4, {"engine": "trtllm"}),
])  # fmt: skip
def test_of_what_is_not_known_no_tokens_are_told(model: str, wanted: dict[str, str]) -> None:
    assert bytes_per_token(context_of(model, tp=8, **wanted)) is None


def shown(plan: Plan) -> str:
    out = StringIO()
    show_plan(Console(file=out, width=200), plan, "SGLang")
    return out.getvalue()


def test_the_plan_tells_how_many_tokens_would_fill_what_is_left_and_that_it_is_a_bound() -> None:
    plan = make_plan(*inventory_of(PRO), Request(16, gpu="h20-96"), PRO)
    memory = plan.memory
    assert memory is not None
    assert memory.kv_bytes_per_token == 5511.4375
    assert memory.kv_tokens_at_most == int(memory.left / Fraction(5511.4375))
    assert f"at most {memory.kv_tokens_at_most:,} tokens of KV cache, of 5,511 bytes each: an upper bound" in shown(
        plan
    )


def test_under_attention_dp_the_tokens_are_those_of_each_group() -> None:
    assert "tokens of KV cache in each attention group" in shown(
        make_plan(*inventory_of(PRO), Request(16, dp=16, gpu="h20-96"), PRO)
    )


def test_no_tokens_are_told_where_the_weights_do_not_fit() -> None:
    plan = make_plan(*inventory_of(PRO), Request(8, gpu="h100"), PRO)
    assert plan.memory is not None
    assert not plan.memory.fits
    assert plan.memory.kv_tokens_at_most == 0
