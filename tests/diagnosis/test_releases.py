"""Every release at its full size: a rank's files have the bytes that the plan says, and every tensor has a fate."""

import re

import pytest
from support.checkpoints.full_size import PRO_FP8, PRO_NVFP4, REAL_MODELS, V3, V32, V41, inventory_of

from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.models import Part
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.recipe_builder import make_recipe

LAYOUTS = ("reference", "sglang", "vllm")
RELEASES = (*REAL_MODELS, PRO_NVFP4)


REFUSED = {
    **{(V41, engine): "family" for engine in ("sglang", "vllm")},
    **{(model, engine): "no layout" for model in (V3, V32) for engine in ("sglang", "vllm")},
    **{(model, "vllm"): "o_a-format" for model in (PRO_FP8, "DeepSeek-V4-Flash-FP8")},
    (PRO_NVFP4, "reference"): "nvfp4",
}
"""By the rule that breaks."""

WRITTEN = [(model, engine) for model in RELEASES for engine in LAYOUTS if (model, engine) not in REFUSED]


def refusal(model: str, engine: str) -> str | None:
    """Why a layout is not written; None where it is."""
    _, inventory = inventory_of(model)
    choice, layout = choose(inventory, Request(8, engine=engine)), engine_for(engine, inventory.family).layout
    if not choice.feasible:
        return choice.breaches[0].rule
    return "no layout" if layout is None else layout.refusal(Context(inventory, choice.deployment))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "engine"), REFUSED)
def test_what_is_not_written_is_refused_for_its_reason(model: str, engine: str) -> None:
    assert refusal(model, engine) == REFUSED[model, engine]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "engine"), WRITTEN)
def test_a_ranks_files_have_the_bytes_of_the_plan_and_no_tensor_is_forgotten(model: str, engine: str) -> None:
    checkpoint, inventory = inventory_of(model)
    plan = make_plan(checkpoint, inventory, Request(8, engine=engine))
    context = Context(inventory, choose(inventory, Request(8, engine=engine)).deployment)
    recipe = make_recipe(checkpoint, engine_for(engine, inventory.family), context, tuple(range(8)))
    assert plan.totals is not None
    mine = sum(file.payload for file in recipe.files if 0 in file.ranks)
    scales = [entry.nbytes for file in recipe.files if 0 in file.ranks for name, entry in file.tensors.items()
              if re.fullmatch(r".*\.mlp\.experts\.w(13|2)_weight_scale", name)]  # fmt: skip
    twice = sum(scales)  # SGLang on Hopper holds those of NVFP4 a second time
    assert mine + twice == plan.totals.target_bytes_per_rank_max + plan.totals.draft_bytes_per_rank
    moved = {step.source.name for step in recipe.steps} | {step.scale.name for step in recipe.steps if step.scale}
    assert moved | recipe.left_out.keys() == checkpoint.tensors.keys()
    assert moved.isdisjoint(recipe.left_out.keys() - {step.scale.name for step in recipe.steps if step.scale})


@pytest.mark.slow
@pytest.mark.parametrize("model", RELEASES)
def test_node_folders_hold_every_tensor_once_or_on_all_nodes(model: str) -> None:
    checkpoint, inventory = inventory_of(model)
    choice = choose(inventory, Request(8, engine="node", nodes=2))
    recipe = make_recipe(
        checkpoint, engine_for("node", inventory.family), Context(inventory, choice.deployment), (0, 1)
    )
    experts = {name for name, at in inventory.names.items() if at.expert >= 0 and at.part is not Part.INPUT_SCALE}
    holders: dict[str, int] = {}
    for file in recipe.files:
        for name in file.tensors:
            holders[name] = holders.get(name, 0) + len(file.ranks)
    assert holders.keys() == checkpoint.tensors.keys()
    assert all(count == (1 if name in experts else 2) for name, count in holders.items())
