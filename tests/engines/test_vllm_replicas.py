"""vLLM's data parallelism: experts over all replicas, everything else over TP, and files for each replica.

Shapes of V4-Pro are those that vLLM 0.33.0's own classes declare; `tests/data/oracles/vllm` has the bytes.
"""

import re
from typing import Any

import pytest
from support.checkpoints.full_size import PRO, config_of, in_memory, inventory_of
from support.paths import ROOT

from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.checkpoint.synthetic import tensors_of
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import find_engine
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.recipe_builder import make_recipe


def plan_of(**wanted: Any) -> Plan:
    return make_plan(*inventory_of(PRO), Request(**wanted, engine="vllm"), PRO)


def experts_of(tp: int, dp: int, ep: int, rank: int) -> tuple[int, ...]:
    """Shape of w13 in the files of a rank."""
    document = config_of(PRO)
    document |= {"num_hidden_layers": 1, "compress_ratios": [128, 0], "num_hash_layers": 1}
    checkpoint = in_memory(document, tensors_of(document))
    inventory, vllm = take_inventory(checkpoint), find_engine("vllm")
    context = Context(inventory, next(vllm.candidates(inventory, Request(tp, ep=ep, dp=dp, engine="vllm", gpu="h200"))))
    assert vllm.breaches(context) == []
    recipe = make_recipe(checkpoint, vllm, context, (rank,))
    (shape,) = (
        info.shape
        for file in recipe.files
        for name, info in file.tensors.items()
        if name == "model.layers.0.ffn.experts.routed_experts.w13_weight"
    )
    return shape


@pytest.mark.parametrize(
    ("tp", "dp", "ep", "rank", "shape"),
    [
        (8, 2, 1, 9, (384, 512, 3584)),
        (8, 2, 16, 9, (24, 6144, 3584)),
        (1, 16, 16, 3, (24, 6144, 3584)),
        (8, 5, 40, 0, (10, 6144, 3584)),
        (8, 5, 40, 23, (10, 6144, 3584)),
        (8, 5, 40, 24, (9, 6144, 3584)),
        (8, 5, 40, 32, (9, 6144, 3584)),
    ],
)
def test_experts_are_cut_or_spread_over_all_replicas(
    tp: int, dp: int, ep: int, rank: int, shape: tuple[int, ...]
) -> None:
    assert experts_of(tp, dp, ep, rank) == shape


def test_the_shards_of_replicas_load_by_our_plugin_or_by_one_command_each() -> None:
    plan = plan_of(tp=2, dp=4, ep=8, gpu="h200")
    assert (plan.layout, plan.launch.needs_plugin) == ("vllm", True)
    assert plan.launch.program.options["--load-format"] == "dsv4_shard"
    page = (ROOT / "docs/how-to/serve.md").read_text()
    pattern = re.findall(r"\"pattern\": \"(.+?)\"", page)[0]
    assert "--data-parallel-rank R" in page
    vllm = find_engine("vllm")
    deployment = next(vllm.candidates(inventory_of(PRO)[1], Request(2, dp=4, ep=8, engine="vllm")))
    names = [vllm.layout.file_name(rank, 0, deployment) for rank in range(8)]
    assert names == [pattern.replace("R", str(r)).format(rank=t, part=0) for r in range(4) for t in range(2)]


def test_one_replica_needs_no_plugin() -> None:
    plan = plan_of(tp=8, ep=8, gpu="h200")
    assert plan.launch.program.options["--load-format"] == "sharded_state"
    assert not plan.launch.needs_plugin


def test_replicas_of_one_rank_each_hold_whole_shared_experts_also_without_ep() -> None:
    plan = plan_of(tp=1, dp=8, gpu="b300")
    assert plan.verdict.is_good
    assert plan.deployment.shared == "whole"


def test_replicas_of_an_older_vllm_get_no_shards() -> None:
    plan = plan_of(tp=4, dp=2, ep=8, engine_version="0.25.0")
    assert plan.layout is None
    assert plan.unwritten == "data parallelism of vLLM 0.25.0 was not compared"
