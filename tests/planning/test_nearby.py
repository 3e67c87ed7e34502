"""Layouts near a request that does not run: offered wherever one option alone is at fault."""

from typing import Any

import pytest
from support.checkpoints.full_size import PRO, inventory_of

from dsv4_shard.engines import Request
from dsv4_shard.planning.plan_builder import make_plan


@pytest.mark.parametrize("wanted", [
    {"tp": 16, "engine": "vllm", "dp_lm_head": True},
    {"tp": 8, "gpu": "h200", "expert_dtype": "fp8"},
    {"tp": 8, "gpu": "h200", "engine": "vllm", "a2a": "deepep"},
    {"tp": 8, "gpu": "h200", "engine": "vllm", "redundant_experts": 8},
])  # fmt: skip
def test_the_same_layout_without_the_option_at_fault_is_the_nearest(wanted: dict[str, Any]) -> None:
    plan = make_plan(*inventory_of(PRO), Request(**wanted), PRO)
    assert plan.verdict == "does not run"
    nearest = plan.alternatives[0]
    assert f"--tp {wanted['tp']} " in f"{nearest.options} "
    assert nearest.gpus == plan.deployment.world
