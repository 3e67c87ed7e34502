"""What each engine takes on each GPU, compared with what the engine's own code says when run (tests/data/gpus)."""

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.full_size import FLASH, PRO, inventory_of
from support.paths import DATA

import dsv4_shard
from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.catalog.options import A2A
from dsv4_shard.catalog.sms import EVERY_SM, FROM_HOPPER
from dsv4_shard.engines import Context, Request
from dsv4_shard.engines.sglang.parameters import keeps_o_a_fp8
from dsv4_shard.engines.sglang.runners import runner_of
from dsv4_shard.engines.sglang.v4 import RULES
from dsv4_shard.engines.sglang.v4 import SGLANG as SGLANG_TABLE
from dsv4_shard.engines.vllm import v4 as vllm
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan


def answers(engine: str) -> list[dict[str, Any]]:
    return json.loads((DATA / "gpus" / f"{engine}.json").read_text())


def name_of(answer: dict[str, Any]) -> str:
    return "-".join(str(answer[key]) for key in ("sm", "experts", "runner", "ep"))


def context_on(answer: dict[str, Any], engine: str, runner: str | None) -> Context:
    """The engine's first choice for a GPU of that architecture, for FP4 or FP8 experts."""
    model = FLASH if answer["experts"] == "FP4" else "DeepSeek-V4-Flash-Base"
    inventory = inventory_of(model)[1]
    gpu = replace(GPUS["h200"], name="asked", sm=answer["sm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GPUS, "asked", gpu)
        request = Request(4, ep=answer["ep"], engine=engine, gpu="asked", runner=runner)
        table = vllm.VLLM if engine == "vllm" else SGLANG_TABLE
        return Context(inventory, next(iter(table.candidates(inventory, request))))


NAMES = {
    "FLASHINFER_TRTLLM_MXFP4_MXFP8": "flashinfer_trtllm", "DEEPGEMM_MXFP4": "deep_gemm", "MARLIN": "marlin",
    "FLASHINFER_TRTLLM": "flashinfer_trtllm", "DEEPGEMM": "deep_gemm", "TRITON": "triton",
    "FLASHINFER_CUTLASS": "flashinfer_cutlass",
}  # fmt: skip
"""vLLM's backends under their names in `--moe-backend`."""


def test_answers_are_there_for_every_architecture() -> None:
    for engine in ("vllm", "sglang"):
        assert {answer["sm"] for answer in answers(engine)} == EVERY_SM


@pytest.mark.parametrize("answer", [one for one in answers("vllm") if one["runner"] == "auto"], ids=name_of)
def test_vllms_own_backend_is_the_one_that_it_resolves(answer: dict[str, Any]) -> None:
    assert context_on(answer, "vllm", None).deployment.runner == NAMES[answer["resolved"]]


@pytest.mark.parametrize("answer", [one for one in answers("vllm") if one["runner"] != "auto"], ids=name_of)
def test_vllms_rules_refuse_the_backends_that_it_refuses(answer: dict[str, Any]) -> None:
    context = context_on(answer, "vllm", answer["runner"])
    asked = [rule for rule in vllm.RULES if rule.name in ("runner", "runner-gpu", "mega-ep")]
    broken = {rule.name for rule in asked if rule.check(context) is not None}
    assert bool(broken & {"runner-gpu", "mega-ep"}) is ("error" in answer)
    assert "runner" not in broken


@pytest.mark.parametrize(("model", "gpu", "runner"), [
    (FLASH, "rtx-pro-6000", "deep_gemm"), (FLASH, "b300", "flashinfer_trtllm"), (FLASH, "h20-96", "marlin"),
    ("DeepSeek-V4-Flash-Base", "rtx-pro-6000", "deep_gemm"), ("DeepSeek-V4-Flash-Base", "gb300", "flashinfer_trtllm"),
])  # fmt: skip
def test_vllm_plans_the_backend_of_the_gpu(model: str, gpu: str, runner: str) -> None:
    plan = make_plan(*inventory_of(model), Request(4, engine="vllm", gpu=gpu), model)
    assert plan.feasible
    assert plan.deployment.runner == runner


@pytest.mark.parametrize("model", [FLASH, "DeepSeek-V4-Flash-Base"])
def test_vllm_has_no_trtllm_experts_on_sm_120(model: str) -> None:
    plan = make_plan(
        *inventory_of(model), Request(4, engine="vllm", gpu="rtx-pro-6000", runner="flashinfer_trtllm"), model
    )
    assert [breach.rule for breach in plan.breaches] == ["runner-gpu"]
    assert "on Blackwell (sm_120)" in plan.breaches[0].reason


SGLANG = [one for one in answers("sglang") if one["sm"] in FROM_HOPPER]

_DTYPES = {"F32": "float32", None: "float8_e8m0fnu"}


@pytest.mark.parametrize("answer", SGLANG, ids=name_of)
def test_sglang_holds_o_a_in_the_dtype_of_the_gpu(answer: dict[str, Any]) -> None:
    """sm_120 holds it in BF16: arg_groups/model_hook.py turns SGLANG_OPT_FP8_WO_A_GEMM off."""
    context = context_on(answer, "sglang", None)
    assert keeps_o_a_fp8(context) is (answer["o_a"]["weight"] == "float8_e4m3fn")
    assert keeps_o_a_fp8(context) is ("weight_scale_inv" in answer["o_a"])


@pytest.mark.parametrize(
    "answer", [one for one in SGLANG if (one["experts"], one["runner"]) == ("FP4", "auto")], ids=name_of
)
def test_sglangs_own_runner_is_the_one_that_it_resolves(answer: dict[str, Any]) -> None:
    assert context_on(answer, "sglang", None).deployment.runner == answer["resolved"]


@pytest.mark.parametrize("answer", SGLANG, ids=name_of)
def test_sglangs_scales_have_the_dtype_of_the_runner(answer: dict[str, Any]) -> None:
    runner = None if answer["runner"] == "auto" else answer["runner"]
    row = runner_of(context_on(answer, "sglang", runner))
    if row is not None:  # else the rules refuse it
        assert _DTYPES[row.scales] == answer["scales"]


@pytest.mark.parametrize("gpu", ["h20-96", "h200", "b200", "rtx-pro-6000"])
@pytest.mark.parametrize("a2a", ["ascend_fuseep", "mori"])
def test_all_to_all_backends_of_other_makers_are_refused(a2a: str, gpu: str) -> None:
    plan = make_plan(*inventory_of(PRO), Request(16, a2a=a2a, gpu=gpu), PRO)
    assert [breach.rule for breach in plan.breaches] == ["a2a-maker"]


def test_all_to_all_backends_follow_the_gpu() -> None:
    takes = {gpu: [a2a for a2a in A2A if _takes(a2a, gpu)] for gpu in ("h200", "b200", "rtx-pro-6000")}
    everywhere = ["deepep", "deepep_v2", "mooncake", "nixl", "flashinfer", "pplx"]
    assert takes["rtx-pro-6000"] == everywhere
    assert set(takes["h200"]) == {*everywhere, "megamoe"}
    assert set(takes["b200"]) == {*everywhere, "megamoe", "flashinfer_megamoe"}
    assert _takes("ascend_fuseep", "ascend-910b")
    assert _takes("mori", "mi355x")


def _takes(a2a: str, gpu: str) -> bool:
    inventory = inventory_of(PRO)[1]
    context = Context(inventory, choose(inventory, Request(8, a2a=a2a, gpu=gpu)).deployment)
    rules = [rule for rule in RULES if rule.name in ("a2a-gpu", "megamoe-gpu", "a2a-maker")]
    return all(rule.check(context) is None for rule in rules)


def test_no_rule_compares_architectures_by_size() -> None:
    """sm_120 is not a larger sm_100: rules name sets of architectures."""
    found = [
        (path.name, node.lineno)
        for path in (Path(dsv4_shard.__file__).parent / "engines").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        and any(isinstance(one, ast.Attribute) and one.attr == "sm" for one in (node.left, *node.comparators))
        and any(isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for operator in node.ops)
    ]
    assert found == []
