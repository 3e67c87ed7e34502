"""DSpark: V4 releases whose draft is three stages, although config.json says one MTP block."""

import pytest
from support.checkpoints.full_size import inventory_of
from support.checkpoints.small import dspark_config, headers_only, small_config

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
    checkpoint, inventory = headers_only(dspark_config(), mtp_blocks, dspark=dspark)
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
def test_the_target_of_shards_is_that_of_a_release_without_draft(engine: str) -> None:
    found, target = recipe_of(engine, 3, dspark=True), recipe_of(engine, 0, dspark=False)
    files = [(file.name, file.header) for file in found.files if not file.name.startswith("draft/")]
    assert files == [(file.name, file.header) for file in target.files]
    assert set(found.left_out) == {name for name in found.left_out if name.endswith("wo_a.scale")}


@pytest.mark.parametrize(("engine", "options"), [
    ("sglang", "--speculative-algorithm DSPARK --speculative-draft-model-path {out}/draft"),
    ("vllm", '"method": "dspark", "num_speculative_tokens": 5, "model": "{out}/draft"'),
])  # fmt: skip
@pytest.mark.parametrize("model", MODELS)
def test_a_plan_drafts_with_dspark_from_shards_and_from_the_checkpoint(model: str, engine: str, options: str) -> None:
    plan = make_plan(*inventory_of(model), Request(tp=8, engine=engine))
    assert plan.feasible
    assert plan.losses == ()
    checkpoint, *_, shards = plan.ways
    assert options.format(out=plan.out) in shards.launch.draft_options
    assert "draft_load_config" in shards.launch.draft_options or "draft-load-format" in shards.launch.draft_options
    assert "/draft" not in checkpoint.launch.draft_options
    assert "dspark" in checkpoint.launch.draft_options.lower()
    assert not any(word in way.launch.draft_options for way in plan.ways for word in ("EAGLE", "mtp"))


@pytest.mark.parametrize(("request_", "why"), [
    (Request(tp=8, dp=2), "--enable-dp-lm-head"),
    (Request(tp=8, engine="vllm", engine_version="0.25.0"), "not run in version 0.25.0"),
])  # fmt: skip
def test_shards_without_a_draft_say_why(request_: Request, why: str) -> None:
    plan = make_plan(*inventory_of(MODELS[0]), request_)
    assert [(loss.part, loss.bytes > 10**9) for loss in plan.losses] == [("DSpark", True)]
    assert why in plan.losses[0].reason
    assert plan.ways[-1].launch.draft_options == ""
    assert plan.totals is not None
    assert plan.totals.draft_bytes_per_rank == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_other_numbers_of_stages_than_the_engine_builds_are_not_written(engine: str) -> None:
    _, inventory = headers_only(dspark_config(dspark_target_layer_ids=[0]), 4, dspark=True)
    choice = choose(inventory, Request(tp=2, engine=engine))
    layout = engine_for(engine, inventory.family).layout
    assert layout is not None
    assert "4 DSpark stages" in (layout.refusal(Context(inventory, choice.deployment)) or "")


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
