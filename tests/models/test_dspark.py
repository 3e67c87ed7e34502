"""DSpark: V4 releases whose draft is three stages, although config.json says one MTP block."""

import pytest
from support.checkpoints.full_size import inventory_of
from support.checkpoints.small import headers_only, small_config

from dsv4_shard.checkpoint.findings import Severity
from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.inspection.known_family import inspect
from dsv4_shard.models.roles import Draft, Role, Stage
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.recipe import Recipe
from dsv4_shard.sharding.recipe_builder import make_recipe

MODELS = ("DeepSeek-V4-Flash-0731", "DeepSeek-V4-Pro-0813")
ENGINES = ("sglang", "vllm")


def recipe_of(engine: str, mtp_blocks: int, *, dspark: bool) -> Recipe:
    checkpoint, inventory = headers_only(small_config(), mtp_blocks, dspark=dspark)
    choice = choose(inventory, Request(tp=2, engine=engine))
    return make_recipe(checkpoint, engine_for(engine, inventory.family), Context(inventory, choice.deployment), (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_stages_are_told_from_the_tensors_and_not_from_the_config(model: str) -> None:
    checkpoint, inventory = inventory_of(model)
    assert checkpoint.config.num_nextn_predict_layers == 1
    assert inventory.draft == Draft(blocks=3, dspark=True)
    assert [f for f in inventory.findings if f.severity is not Severity.NOTE] == []
    identity = inspect(checkpoint, inventory, (8,)).identity
    assert (identity.mtp_blocks, identity.dspark) == (3, True)


@pytest.mark.parametrize("engine", ENGINES)
def test_shards_of_raw_parameters_hold_the_target_model_alone(engine: str) -> None:
    """Their draft classes were never run, so nothing is written for them: the files are those of a model without."""
    found, target = recipe_of(engine, 3, dspark=True), recipe_of(engine, 0, dspark=False)
    assert [(file.name, file.header) for file in found.files] == [(file.name, file.header) for file in target.files]
    _, inventory = headers_only(small_config(), 3, dspark=True)
    assert set(found.left_out) >= {name for name, at in inventory.names.items() if at.stage is Stage.MTP}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", MODELS)
def test_a_plan_says_that_the_stages_are_left_out_and_offers_no_draft(engine: str, model: str) -> None:
    plan = make_plan(*inventory_of(model), Request(tp=8, engine=engine))
    assert plan.feasible
    assert [(loss.part, loss.bytes > 10**9) for loss in plan.losses] == [("DSpark", True)]
    assert "without DSpark: these shards cannot hold" in plan.headline
    assert plan.launch.draft_options == ""
    assert plan.totals is not None
    assert plan.totals.draft_bytes_per_rank == 0


@pytest.mark.parametrize(
    "name", ["mtp.0.main_proj.weight", "mtp.2.markov_head.markov_w1.weight", "mtp.1.attn_norm.weight"]
)
def test_a_stage_without_one_of_its_tensors_is_incomplete(name: str) -> None:
    checkpoint, inventory = headers_only(small_config(), 3, dspark=True)
    assert name in inventory.names
    checkpoint.tensors.pop(name)
    errors = [finding.message for finding in take_inventory(checkpoint).errors]
    assert any("missing" in message or "scale" in message for message in errors)
    assert any(name in message or name.replace("weight", "scale") in message for message in errors)


def test_the_roles_of_the_last_stage_stand_nowhere_else() -> None:
    _, inventory = headers_only(small_config(), 3, dspark=True)
    last = {Role.DSPARK_MARKOV_EMBED, Role.DSPARK_MARKOV_HEAD, Role.DSPARK_CONFIDENCE, Role.HC_HEAD_FN}
    places = {(at.role, at.layer) for at in inventory.names.values() if at.stage is Stage.MTP and at.role in last}
    assert places == {(role, 2) for role in last}
