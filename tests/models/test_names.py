"""Names → roles, compared with every tensor of the real checkpoints."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.full_size import PRO, REAL_MODELS, config_of, inventory_of
from support.checkpoints.skeletons import expand

from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.models.config import parse_config
from dsv4_shard.models.families import FAMILIES, family_of
from dsv4_shard.models.names import Names
from dsv4_shard.models.roles import Draft, Module, Part, Place, Role, Stage, TensorName
from dsv4_shard.tensors.geometry import logical_shape


def names_of(model: str) -> Names:
    config, _ = parse_config(json.dumps(config_of(model)).encode(), model)
    return family_of(config).names(config)


V4_NAMES = names_of(PRO)


@pytest.mark.slow
@pytest.mark.parametrize("model", REAL_MODELS)
def test_every_tensor_of_a_real_checkpoint_has_a_place_of_its_own_and_its_name_comes_back(model: str) -> None:
    names, tensors, places = names_of(model), expand(model), set()
    for name in tensors:
        parsed = names.parse(name)
        assert parsed is not None, name
        assert names.unparse(parsed) == name
        places.add(parsed)
    assert len(places) == len(tensors)


@pytest.mark.slow
@pytest.mark.parametrize("model", REAL_MODELS)
def test_the_shapes_of_the_table_are_those_of_the_real_checkpoints(model: str) -> None:
    checkpoint, inventory = inventory_of(model)
    for name, at in inventory.names.items():
        if at.part is Part.WEIGHT:
            dtype, shape = checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape
            place = Place(at.stage, at.layer, inventory.draft)
            due = inventory.family.rows[at.stage, at.role].shape(inventory.config, place)
            assert due == logical_shape(dtype, shape, at.role.module is Module.ROUTED), name


@pytest.mark.parametrize("model", REAL_MODELS)
def test_a_layer_of_a_real_checkpoint_has_what_its_place_says_and_nothing_else(model: str) -> None:
    _, inventory = inventory_of(model)
    held: dict[tuple[Stage, int], set[Role]] = {}
    for at in inventory.names.values():
        if at.part is Part.WEIGHT and not inventory.family.rows[at.stage, at.role].optional:
            held.setdefault((at.stage, at.layer), set()).add(at.role)
    for stage, layer in held:
        assert held[stage, layer] == set(_due(inventory, Place(stage, layer, inventory.draft))), (stage, layer)


def _due(inventory: Inventory, place: Place) -> list[Role]:
    specs = inventory.family.specs[place.stage]
    return [spec.role for spec in specs if spec.present(inventory.config, place) and not spec.optional]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("embed.weight", TensorName(Role.EMBED, Part.WEIGHT, Stage.MODEL)),
        ("norm.weight", TensorName(Role.FINAL_NORM, Part.WEIGHT, Stage.MODEL)),
        ("layers.0.ffn.gate.tid2eid", TensorName(Role.ROUTER_HASH, Part.WEIGHT, Stage.LAYER, 0)),
        ("layers.60.attn.attn_sink", TensorName(Role.ATTN_SINK, Part.WEIGHT, Stage.LAYER, 60)),
        ("layers.3.attn.wo_b.scale", TensorName(Role.O_B, Part.SCALE, Stage.LAYER, 3)),
        ("layers.3.ffn.shared_experts.w2.scale", TensorName(Role.SHARED_DOWN, Part.SCALE, Stage.LAYER, 3)),
        ("layers.3.ffn.experts.383.w3.weight", TensorName(Role.ROUTED_UP, Part.WEIGHT, Stage.LAYER, 3, 383)),
        ("layers.2.attn.indexer.compressor.ape", TensorName(Role.INDEXER_APE, Part.WEIGHT, Stage.LAYER, 2)),
        ("mtp.0.norm.weight", TensorName(Role.FINAL_NORM, Part.WEIGHT, Stage.MTP, 0)),
        ("mtp.0.e_proj.scale", TensorName(Role.MTP_E_PROJ, Part.SCALE, Stage.MTP, 0)),
        ("mtp.0.emb.tok_emb.weight", TensorName(Role.MTP_EMBED, Part.WEIGHT, Stage.MTP, 0)),
    ],
)
def test_a_name_says_role_part_stage_layer_and_expert(name: str, place: TensorName) -> None:
    assert V4_NAMES.parse(name) == place
    assert V4_NAMES.unparse(place) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "embed",
        "embed.",
        "embed.scale",
        "embed.weight.",
        ".embed.weight",
        "EMBED.weight",
        "model.embed.weight",
        "layers",
        "layers.",
        "layers.3",
        "layers.3.",
        "layers..attn_norm.weight",
        "layers.03.attn_norm.weight",
        "layers.00.attn_norm.weight",
        "layers.-1.attn_norm.weight",
        "layers.+1.attn_norm.weight",
        "layers. 1.attn_norm.weight",
        "layers.1 .attn_norm.weight",
        "layers.1_0.attn_norm.weight",
        "layers.1e1.attn_norm.weight",
        "layers.0x1.attn_norm.weight",
        "layers.٣.attn_norm.weight",
        "layers.３.attn_norm.weight",
        "layers.³.attn_norm.weight",
        "layers.1234567.attn_norm.weight",
        "layers.3.attn_norm",
        "layers.3.attn_norm.weight.",
        "layers.3.attn_norm.weight\n",
        "layers.3.attn_norm.scale",
        "layers.3.attn_norm.bias",
        "layers.3..attn_norm.weight",
        "layers.3.norm.weight",
        "layers.3.e_proj.weight",
        "layers.3.attn.attn_sink.weight",
        "layers.3.attn.wq_b",
        "layers.3.attn.wq_b.weight_scale_inv",
        "layers.3.ffn.gate.tid2eid.weight",
        "layers.3.ffn.gate.tie2eid",
        "layers.3.ffn.gate.bias_vl",
        "layers.3.ffn.experts",
        "layers.3.ffn.experts.",
        "layers.3.ffn.experts.w1.weight",
        "layers.3.ffn.experts.0",
        "layers.3.ffn.experts.0.",
        "layers.3.ffn.experts.00.w1.weight",
        "layers.3.ffn.experts.-1.w1.weight",
        "layers.3.ffn.experts.0.w1",
        "layers.3.ffn.experts.0.w4.weight",
        "layers.3.ffn.experts.0.w1.weight.",
        "layers.3.ffn.shared_experts.0.w1.weight",
        "layers.3.ffn.shared_experts.w1",
        "mtp.embed.weight",
        "mtp.0.embed.weight",
        "norm.weight.0",
        "../../etc/passwd",
        "model.layers.3.mlp.shared_experts.gate_proj.weight_scale_inv",
    ],
)
def test_a_name_that_no_v4_model_has_is_unknown(name: str) -> None:
    assert V4_NAMES.parse(name) is None


@pytest.mark.slow
@given(st.text(max_size=40) | st.from_regex(r"(layers|mtp)\.\d{1,3}\.(attn|ffn)\.[\w.]{0,30}", fullmatch=True))
def test_any_name_is_unknown_or_comes_back_as_it_was(name: str) -> None:
    parsed = V4_NAMES.parse(name)
    assert parsed is None or V4_NAMES.unparse(parsed) == name


@pytest.mark.parametrize(("stage", "layer", "ratio", "hashed"), [
    (Stage.LAYER, 0, 128, True), (Stage.LAYER, 4, 4, False), (Stage.MTP, 0, 0, False), (Stage.MTP, 4, 0, False),
])  # fmt: skip
def test_an_mtp_block_is_a_plain_layer_whatever_its_number(stage: Stage, layer: int, ratio: int, hashed: bool) -> None:
    _, inventory = inventory_of(PRO)
    roles = _due(inventory, Place(stage, layer, Draft(5)))
    assert (Role.COMPRESSOR_KV in roles, Role.INDEXER_KV in roles) == (ratio != 0, ratio == 4)
    assert (Role.ROUTER_HASH in roles, Role.ROUTER_BIAS in roles) == (hashed, not hashed)


def test_every_role_is_in_some_family_and_every_module_has_a_role() -> None:
    assert {role for family in FAMILIES for _, role in family.rows} == set(Role)
    assert {role.module for role in Role} == set(Module) - {Module.DEPLOYMENT}
