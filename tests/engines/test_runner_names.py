"""Every name that an engine has for an MoE runner is planned, verified or not; names that are gone are answered."""

import pytest
from support.checkpoints.full_size import PRO, inventory_of

from dsv4_shard.catalog.options import OTHER_RUNNERS, REPLACED_RUNNERS, RUNNER_NAMES
from dsv4_shard.catalog.request import PlanOptions
from dsv4_shard.engines.deployment import Request
from dsv4_shard.engines.verdict import Verdict
from dsv4_shard.errors import UsageError
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.request import request_of

SGLANG = """auto deep_gemm triton triton_kernel flashinfer_trtllm experimental_sgl_trtllm flashinfer_trtllm_routed
flashinfer_cutlass flashinfer_mxfp4 flashinfer_cutedsl flashinfer_megamoe cutlass aiter marlin humming
experimental_sgl_marlin lora_cutedsl lora_triton lora_marlin hpc_ops megamoe intel_xpu"""
"""`MOE_RUNNER_BACKEND_CHOICES` of SGLang 0.5.23's `arg_groups/choices.py`."""

VLLM = """triton batched_triton deep_gemm deep_gemm_mega_moe cutlass flashinfer_trtllm flashinfer_cutlass
flashinfer_cutedsl flashinfer_moe_ep_cutedsl flashinfer_b12x b12x flashinfer_moe_ep_mega_deep_gemm marlin humming
triton_unfused aiter aiter_mega_moe aiter_triton_mxfp4_bf16 aiter_triton_mxfp4_mxfp4 flydsl hpc emulation rdna3"""
"""`MoEBackend` of vLLM 0.33.0's `config/kernel.py`, without `auto`, which is no runner here."""


@pytest.mark.parametrize(("engine", "names"), [("sglang", SGLANG), ("vllm", VLLM)])
def test_every_name_of_an_engine_is_taken(engine: str, names: str) -> None:
    assert sorted(RUNNER_NAMES[engine]) == sorted(names.split())


@pytest.mark.parametrize(
    ("engine", "runner"), [(engine, runner) for engine, names in OTHER_RUNNERS.items() for runner in names]
)
def test_a_runner_that_was_not_compared_is_not_verified(engine: str, runner: str) -> None:
    plan = make_plan(*inventory_of(PRO), Request(8, engine=engine, runner=runner, gpu="h200"), PRO)
    assert plan.verdict is Verdict.UNVERIFIED
    assert runner in plan.breaches[0].reason
    assert plan.layout is None


@pytest.mark.parametrize("runner", REPLACED_RUNNERS)
def test_a_name_that_is_gone_is_answered_with_what_is_there(runner: str) -> None:
    with pytest.raises(UsageError) as caught:
        request_of(PlanOptions(tp=8, engine="vllm", runner=runner))
    assert caught.value.hint == REPLACED_RUNNERS[runner]
    assert "deep_gemm_mega_moe has the same FP4 experts" in caught.value.hint
